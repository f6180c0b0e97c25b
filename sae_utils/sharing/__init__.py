"""Data sets and SAEs on the Hugging Face hub: sent there when they are finished, and fetched from there.

In: folders that are finished. Out: repositories with the same files. What comes back is a data set as it was made
here. Its files:

    asking          what can go wrong when the hub is asked, in one line
    repositories    which folder is which repository, and which of its files belong into it
    login           may we write there? found out before anything is loaded
    upload          what is not there yet is sent, in one commit
    download        a data set fetched whole, to be one that lies here
"""
