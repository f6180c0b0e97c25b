"use strict";
(() => {
  const PAGE_SIZE = 20;
  const SHARED_COSINE = 0.7;
  const byId = (id) => document.getElementById(id);
  const state = { sae: 0, sort: "rate", filter: "all", page: 0 };
  let shown = null; /* data of the SAE that was chosen last; null as long as its file is missing */
  let visible = [];

  const CONTROL = { "\n": "↵", "\r": "␍", "\t": "⇥" };

  /* data: within the page or in a file beside it, which a page from a disk may read as a script only */

  const files = [...byId("sae").options].map((option) => option.dataset.file);
  const known = new Map();
  window.addFeatures = (file, data) => known.set(files.indexOf(file), data);

  async function saeData(index) {
    if (!known.has(index)) {
      const inside = byId(`features-${index}`);
      if (inside) known.set(index, JSON.parse(inside.textContent));
      else await run(files[index]);
    }
    return known.get(index) ?? null;
  }

  function run(file) { /* ends, too, where there is no such file, so that it is looked for again when it is asked for again */
    return new Promise((resolve) => {
      const script = make("script");
      script.src = file.split("/").map(encodeURIComponent).join("/");
      script.onload = script.onerror = () => { script.remove(); resolve(); };
      document.head.append(script);
    });
  }

  const isShared = (feature) => feature.cosine !== null && feature.cosine > SHARED_COSINE;

  const FILTERS = {
    all: () => true,
    shared: isShared,
    unshared: (feature) => feature.cosine !== null && !isShared(feature),
    fake: (feature) => feature.fake,
  };

  const byRate = (a, b) => b.rate - a.rate || a.latent - b.latent;
  const cosineOr = (feature, missing) => (feature.cosine === null ? missing : feature.cosine);
  const ORDERS = {
    rate: byRate,
    shared: (a, b) => cosineOr(b, -2) - cosineOr(a, -2) || byRate(a, b),
    unshared: (a, b) => cosineOr(a, 2) - cosineOr(b, 2) || byRate(a, b),
    fake: (a, b) => b.fake - a.fake || b.randomRate - a.randomRate || byRate(a, b),
  };

  /* words */

  const count = (n) => n.toLocaleString("en-US");
  const exactly = (n) => ({ minimumSignificantDigits: n, maximumSignificantDigits: n });
  const digits = (value, n) => (value === 0 ? "0" : value.toLocaleString("en-US", exactly(n)));
  const fixed = (value, n) => { /* only zero itself is shown as zero, as everywhere else on the page */
    const text = value.toFixed(n);
    return value !== 0 && Number(text) === 0 ? digits(value, 1) : text;
  };
  const share = (value) => (value === 0 ? "never" : `${digits(100 * value, 3)}%`);

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  /* one token: text only, never markup; spaces stay spaces, characters that do not show get a mark */

  function fillToken(element, text) {
    let run = "";
    const flush = () => { if (run) element.append(run); run = ""; };
    for (const char of text) {
      const code = char.codePointAt(0);
      if (/\p{Zs}/u.test(char)) { flush(); element.append(make("span", "space", char)); continue; }
      const isHidden = code < 32 || code === 127 || /[\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/u.test(char);
      if (!isHidden) { run += char; continue; }
      flush();
      const mark = make("span", "control");
      mark.dataset.mark = CONTROL[char] || (code < 32 ? String.fromCodePoint(0x2400 + code) : `U+${code.toString(16).toUpperCase()}`);
      element.append(mark);
    }
    flush();
    if (!text) { const mark = make("span", "control"); mark.dataset.mark = "∅"; element.append(mark); }
  }

  function contextElement([ids, active, peak], data, feature) {
    const line = make("p", "context");
    const values = new Map();
    for (let i = 0; i < active.length; i += 2) values.set(active[i], active[i + 1]);
    ids.forEach((id, position) => {
      const value = values.get(position) || 0;
      const token = make("span", "token");
      token.title = `activation ${digits(value, 4)}${position === peak ? ", peak" : ""}`;
      if (value > 0) {
        token.classList.add("active");
        token.style.setProperty("--level", Math.min(1, feature.max > 0 ? value / feature.max : 0).toFixed(3));
      }
      if (position === peak) token.classList.add("peak");
      fillToken(token, data.tokens[id]);
      line.append(token);
    });
    return line;
  }

  function partnerElement(feature) {
    if (feature.partner === null) return make("span", "", "needs two seeds");
    const name = `${count(feature.partner)} of seed ${feature.partnerSeed}`;
    if (feature.partnerSae === null) {
      const text = make("span", "", `${name}, not shown`);
      text.title = "this feature is not among those that the page holds";
      return text;
    }
    const button = make("button", "link", name);
    button.type = "button";
    button.dataset.partner = feature.partner;
    button.dataset.sae = feature.partnerSae;
    return button;
  }

  function sourcesElement(feature) {
    const table = make("table", "sources");
    const row = (cells) => {
      const line = make("tr");
      line.append(...cells.map((cell, column) => make(column ? "td" : "th", "", cell)));
      return line;
    };
    const known = [1, 2].filter((which) => feature.sources.some((source) => source[which] !== null));
    const names = ["source", "found in", "fires on"];
    const head = make("thead");
    head.append(row([names[0], ...known.map((which) => names[which])]));
    for (const cell of head.querySelectorAll("td")) cell.title = cell.textContent === names[1]
      ? "share of the other seeds' SAEs of this source in which the feature comes back"
      : "share of the held-out tokens of this source on which it is active";
    const body = make("tbody");
    for (const source of feature.sources) {
      body.append(row([source[0], ...known.map((which) => source[which] === null ? "–" : share(source[which]))]));
    }
    table.append(head, body);
    return table;
  }

  function featureElement(feature, data) {
    const card = make("li", "feature");
    card.id = `feature-${feature.latent}`;
    card.tabIndex = -1;
    const head = make("div", "head");
    head.append(make("h3", "", `Feature ${count(feature.latent)}`));
    if (feature.cosine !== null) {
      head.append(make("span", isShared(feature) ? "badge shared" : "badge", isShared(feature) ? "shared" : "not shared"));
    }
    if (feature.fake) head.append(make("span", "badge fake", "fake"));
    card.append(head);
    const numbers = make("dl");
    const add = (name, value) => {
      const group = make("div");
      const dd = make("dd");
      dd.append(value);
      group.append(make("dt", "", name), dd);
      numbers.append(group);
    };
    add("fires on", share(feature.rate));
    add("max activation", digits(feature.max, 3));
    if (feature.cosine !== null) add("best cosine", fixed(feature.cosine, 3).replace("-", "−"));
    add("partner", partnerElement(feature));
    add("on random tokens", share(feature.randomRate));
    card.append(numbers);
    if (feature.sources.length) card.append(sourcesElement(feature));
    const contexts = make("div", "contexts");
    for (const context of feature.contexts) contexts.append(contextElement(context, data, feature));
    if (!feature.contexts.length) contexts.append(make("p", "missing", "No context: it is not active on held-out tokens."));
    card.append(contexts);
    return card;
  }

  /* the page of features */

  const lastPage = () => Math.max(0, Math.ceil(visible.length / PAGE_SIZE) - 1);

  async function select() { /* whether what is shown is what was asked for: meanwhile another may have been */
    const asked = state.sae;
    const found = await saeData(asked);
    if (asked !== state.sae) return false;
    shown = found;
    visible = shown ? shown.features.filter(FILTERS[state.filter]).sort(ORDERS[state.sort]) : [];
    return true;
  }

  function show() {
    state.page = Math.min(Math.max(state.page, 0), lastPage());
    const first = state.page * PAGE_SIZE;
    const page = visible.slice(first, first + PAGE_SIZE);
    byId("features").start = first + 1;
    byId("features").replaceChildren(...page.map((feature) => featureElement(feature, shown)));
    byId("lacking").hidden = shown !== null;
    byId("lacking").textContent = shown === null ? `The features of this SAE are in ${files[state.sae]}, which is not beside this page, or not whole.` : "";
    byId("status").textContent = page.length
      ? `${count(first + 1)}–${count(first + page.length)} of ${count(visible.length)} features, page ${state.page + 1} of ${lastPage() + 1}`
      : shown ? "No feature of this SAE is in this group." : "No features to show.";
    byId("previous").setAttribute("aria-disabled", state.page === 0);
    byId("next").setAttribute("aria-disabled", state.page === lastPage());
    byId("how-chosen").textContent = shown ? `${shown.howChosen} ${count(shown.features.length)} of ${count(shown.nLatents)} latents are here.` : "";
    byId("bubble").hidden = true;
  }

  function turn(step) {
    const page = state.page + step;
    if (page < 0 || page > lastPage()) return;
    state.page = page;
    show();
    if (byId("features").getBoundingClientRect().top < 0) byId("features").scrollIntoView();
  }

  async function jump(sae, latent) {
    Object.assign(state, { sae, filter: "all" });
    byId("sae").value = sae;
    byId("filter").value = "all";
    if (!(await select())) return;
    state.page = Math.floor(visible.findIndex((feature) => feature.latent === latent) / PAGE_SIZE);
    show();
    if (!shown) { byId("lacking").scrollIntoView({ block: "center" }); return; }
    const card = byId(`feature-${latent}`);
    card.classList.add("target");
    card.focus({ preventScroll: true });
    card.scrollIntoView({ block: "center" });
  }

  function showValue(token) {
    byId("bubble").textContent = `“${token.textContent.trim() || "whitespace"}”: ${token.title}`;
    byId("bubble").hidden = false;
  }

  /* events */

  for (const name of ["sae", "sort", "filter"]) {
    byId(name).addEventListener("change", async (event) => {
      state[name] = name === "sae" ? Number(event.target.value) : event.target.value;
      state.page = 0;
      if (await select()) show();
    });
  }
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  byId("browser").addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.matches("select, input")) return;
    const step = { ArrowRight: 1, n: 1, ArrowLeft: -1, p: -1 }[event.key];
    if (step) { event.preventDefault(); turn(step); byId("features").focus({ preventScroll: true }); }
    if (event.key === "Escape") byId("bubble").hidden = true;
  });
  byId("features").addEventListener("click", (event) => {
    const link = event.target.closest("button[data-partner]");
    if (link) { jump(Number(link.dataset.sae), Number(link.dataset.partner)); return; }
    const token = event.target.closest(".token");
    if (token) showValue(token); else byId("bubble").hidden = true;
  });

  for (const name of ["sae", "sort", "filter"]) { /* a reload may keep what was chosen: start from what is shown */
    state[name] = name === "sae" ? Number(byId(name).value) : byId(name).value;
  }
  for (const id of ["controls", "pager", "scale"]) byId(id).hidden = false;
  select().then(show);
})();
