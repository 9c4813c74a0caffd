"use strict";
// The gallery, the groups and the corrections of a scan's page. Texts go into the page as text, never as markup.
{
  const data = JSON.parse(document.getElementById("data").textContent);
  const { categories, titles, bounds, allowed, pictures } = data;
  const threshold = data.thresholds.unsafe;
  const PAGE = 48, GROUPS_PAGE = 8, GROUP_CARDS = 12, NUM_BARS = 5, SHOWN_FROM = 0.01;
  const corrections = new Map(); // index of a picture -> column of the right category
  let isSaved = true, isClear = false;
  const element = (id) => document.getElementById(id);
  const count = (number) => number.toLocaleString("en");
  const SHOW = "Show the picture", BLUR = "Blur it again";

  // ------------------------------------------------------------------------------------------------------- one card

  // As many digits as show on which side of the threshold it is; whether the rule fires is the policy's word.
  function percent(probability, bound, fires) {
    let text;
    for (let digits = 1; digits <= 6; digits++) {
      text = (100 * probability).toFixed(digits);
      if (bound == null || Number(text) >= Number((100 * bound).toPrecision(12)) === fires) break;
    }
    return `${text} %`;
  }

  function bar(title, probability, bound, fires) {
    const row = document.createElement("tr");
    const head = row.appendChild(document.createElement("th"));
    head.scope = "row";
    const words = head.appendChild(document.createElement("span"));
    words.dir = "auto";
    words.textContent = title;
    const track = head.appendChild(document.createElement("div"));
    track.className = "track";
    track.setAttribute("aria-hidden", "true");
    const fill = track.appendChild(document.createElement("div"));
    fill.className = "fill";
    fill.style.width = `${100 * probability}%`;
    if (bound != null) {
      const mark = track.appendChild(document.createElement("div"));
      mark.className = "mark";
      mark.style.left = `${100 * bound}%`;
    }
    row.insertCell().textContent = percent(probability, bound, fires);
    const last = row.insertCell();
    if (bound != null) last.textContent = `${Number((100 * bound).toPrecision(4))} %`;
    if (fires) {
      row.className = "fires";
      last.appendChild(document.createElement("span")).textContent = "fires";
    }
    return row;
  }

  function bars(table, picture) {
    table.caption.textContent = data.hasPolicy
      ? "Probabilities, calibrated by the policy; the mark is the threshold"
      : "Probabilities by the guard; there is no policy";
    const head = table.tHead.insertRow();
    for (const text of ["Category", "Probability", "Threshold"]) {
      const cell = head.appendChild(document.createElement("th"));
      cell.scope = "col";
      cell.textContent = text;
    }
    const ranked = picture.scores.map((_, i) => i).sort((a, b) => picture.scores[b] - picture.scores[a]);
    const shown = ranked.slice(0, NUM_BARS).filter((i, place) => !place || picture.scores[i] >= SHOWN_FROM);
    shown.push(...ranked.filter((i) => picture.fired.includes(i) && !shown.includes(i)));
    const body = table.tBodies[0];
    if (data.hasScore) {
      const title = allowed.includes(true) ? "unsafe, without what is allowed" : "unsafe";
      body.append(bar(title, picture.score, threshold, picture.unsafe));
    }
    for (const i of shown) {
      const title = allowed[i] ? `${titles[i]} (allowed)` : titles[i];
      body.append(bar(title, picture.scores[i], bounds[i], picture.fired.includes(i)));
    }
  }

  function unveil(tile, isShown) {
    tile.setAttribute("aria-pressed", isShown);
    tile.querySelector(".veil").textContent = isShown ? BLUR : SHOW;
  }

  const options = document.createDocumentFragment();
  options.append(new Option("the verdict stands", ""), ...titles.map((title, i) => new Option(title, i)));

  function card(index) {
    const picture = pictures[index];
    const item = element("card").content.firstElementChild.cloneNode(true);
    const part = (selector) => item.querySelector(selector);
    const article = part("article"), tile = part(".tile"), plain = part(".plain"), map = part(".map");
    article.setAttribute("aria-label", `Verdict on ${picture.name}`);
    article.dataset.index = index;
    part(".name").textContent = picture.name;
    if (picture.thumbnail) {
      part("img").src = picture.thumbnail;
      tile.setAttribute("aria-label", `Picture ${picture.name}: show it clearly`);
      unveil(tile, isClear);
      tile.addEventListener("click", () => unveil(tile, tile.getAttribute("aria-pressed") === "false"));
      plain.remove();
    } else {
      tile.remove();
      const why = picture.missing ?? "this page holds no small picture of it";
      plain.textContent = picture.error === undefined ? `No picture: ${why}` : "Not judged";
    }
    const decision = part(".decision");
    if (picture.error !== undefined) {
      decision.textContent = `Not judged: ${picture.error}`;
      decision.dir = "auto";
      decision.classList.add("flagged");
      part("table").remove();
    } else {
      decision.textContent = picture.words;
      decision.classList.toggle("flagged", picture.action !== "allow");
      bars(part("table"), picture);
    }
    if (picture.group !== undefined) {
      const [size, disagrees] = data.groups[picture.group];
      const note = part(".note");
      note.textContent = `In group ${picture.group} of ${count(size)} near-identical pictures`;
      if (disagrees) note.textContent += ", whose verdicts disagree";
      note.hidden = false;
    }
    const mapped = part(".mapped");
    if (picture.map && picture.thumbnail) {
      map.addEventListener("click", () => {
        const isMap = mapped.hidden;
        map.textContent = isMap ? "Show the picture without it" : "Show the heat map";
        part("img").src = isMap ? picture.map : picture.thumbnail;
        mapped.textContent = picture.mapped;
        mapped.hidden = !isMap;
      });
    } else {
      map.remove();
      mapped.hidden = !picture.mapped;
      mapped.textContent = picture.mapped ?? "";
    }
    const select = part("select"), fixed = part(".fixed");
    if (picture.path === undefined) {
      part(".right").remove();
      fixed.textContent = `Its verdict cannot be corrected: ${picture.fixed}.`;
    } else {
      fixed.remove();
      select.append(options.cloneNode(true));
      select.value = corrections.get(index) ?? "";
      article.classList.toggle("corrected", corrections.has(index));
      select.addEventListener("change", () => correct(index, select.value));
    }
    return item;
  }

  // ---------------------------------------------------------------------------------------------------- corrections

  function correct(index, value) {
    if (value === "") corrections.delete(index);
    else corrections.set(index, Number(value));
    for (const article of document.querySelectorAll(`article[data-index="${index}"]`)) { // in the gallery, in a group
      article.querySelector("select").value = value;
      article.classList.toggle("corrected", value !== "");
    }
    isSaved = corrections.size === 0;
    tellCorrections();
  }

  function tellCorrections(more = "") {
    const number = corrections.size;
    element("save").disabled = !number;
    element("corrected").textContent = number
      ? `${count(number)} ${number === 1 ? "correction" : "corrections"}${more}.`
      : "No corrections yet.";
  }

  element("save").addEventListener("click", () => {
    const lines = [...corrections].sort(([a], [b]) => a - b).map(
      ([index, column]) => JSON.stringify({ images: [pictures[index].path], safety_label: categories[column] }) + "\n",
    );
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
    link.download = "corrections.jsonl";
    link.click();
    URL.revokeObjectURL(link.href);
    isSaved = true;
    tellCorrections(", saved as corrections.jsonl");
  });
  window.addEventListener("beforeunload", (event) => {
    if (!isSaved) event.preventDefault();
  });

  // ---------------------------------------------------------------------------------------------------------- pages

  // Shows `things` a page at a time; `draw(list of them)` gives the elements, `tell(from, to)` the words for them.
  function paged(things, size, place, pages, draw, tell) {
    const last = Math.max(0, Math.ceil(things.length / size) - 1);
    const status = document.createElement("span");
    const button = (text, step) => {
      const made = document.createElement("button");
      made.type = "button";
      made.textContent = text;
      made.addEventListener("click", () => turn(step(page)));
      return made;
    };
    const back = [button("First", () => 0), button("Previous", (p) => p - 1)];
    const on = [button("Next", (p) => p + 1), button("Last", () => last)];
    let page = 0;
    function turn(to, isFirst) {
      page = to;
      const shown = things.slice(page * size, (page + 1) * size);
      place.replaceChildren(...draw(shown));
      status.textContent = `Page ${count(page + 1)} of ${count(last + 1)}`;
      tell(page * size + 1, page * size + shown.length);
      for (const one of back) one.disabled = page === 0;
      for (const one of on) one.disabled = page === last;
      if (isFirst) return;
      place.tabIndex = -1; // the next thing that is read is what has changed
      place.focus({ preventScroll: true });
      place.scrollIntoView({ block: "start" });
    }
    pages.replaceChildren(...back, status, ...on);
    pages.hidden = last === 0;
    turn(0, true);
  }

  // -------------------------------------------------------------------------------------------------------- gallery

  const filters = element("filters");
  const names = pictures.map((picture) => picture.name.toLowerCase());
  const near = (picture) => Math.abs(picture.score - (threshold ?? 0.5));
  const unjudgedLast = (by) => (a, b) => {
    const [one, other] = [pictures[a], pictures[b]];
    if (one.score === undefined || other.score === undefined) {
      return (one.score === undefined) - (other.score === undefined) || a - b;
    }
    return by(one, other) || a - b;
  };
  const ORDERS = {
    high: unjudgedLast((a, b) => b.score - a.score),
    low: unjudgedLast((a, b) => a.score - b.score),
    near: unjudgedLast((a, b) => near(a) - near(b)),
    name: (a, b) => (names[a] < names[b] ? -1 : names[a] > names[b] ? 1 : a - b),
  };
  const disagrees = (picture) => picture.group !== undefined && data.groups[picture.group][1];

  function fits(index, wanted) {
    const picture = pictures[index];
    const action = picture.error === undefined ? picture.action : "error";
    const isOfAction = wanted.action === "flagged" ? action === "flag" || action === "block" : action === wanted.action;
    return (
      (!wanted.text || names[index].includes(wanted.text.toLowerCase())) &&
      (!wanted.action || isOfAction) &&
      (!wanted.category || picture.label === Number(wanted.category)) &&
      (!wanted.severity || picture.severity === wanted.severity) &&
      (wanted.only !== "corrected" || corrections.has(index)) &&
      (wanted.only !== "group" || picture.group !== undefined) &&
      (wanted.only !== "disagree" || disagrees(picture))
    );
  }

  function filter() {
    const wanted = Object.fromEntries(new FormData(filters));
    const chosen = pictures.map((_, i) => i).filter((i) => fits(i, wanted)).sort(ORDERS[wanted.sort]);
    paged(chosen, PAGE, element("cards"), element("pages"), (page) => page.map(card), (from, to) => {
      const of = `${count(chosen.length)} of ${count(pictures.length)} pictures`;
      element("found").textContent = chosen.length ? `${of}; shown: ${count(from)} to ${count(to)}.` : `${of}.`;
    });
  }

  let waiting;
  filters.addEventListener("input", (event) => {
    if (event.target.name === "clear") {
      isClear = event.target.checked;
      document.querySelectorAll(".tile").forEach((tile) => unveil(tile, isClear));
      return;
    }
    clearTimeout(waiting);
    waiting = setTimeout(filter, event.target.name === "text" ? 150 : 0);
  });
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("reset", () => {
    setTimeout(() => { // the form has its first values after the event
      isClear = false;
      filter();
      document.querySelectorAll(".tile").forEach((tile) => unveil(tile, false));
    });
  });
  filters.hidden = false;
  filters.reset(); // a browser fills in again what was chosen before the page was read anew

  // --------------------------------------------------------------------------------------------------------- groups

  const members = new Map();
  pictures.forEach((picture, i) => {
    if (picture.group === undefined) return;
    if (!members.has(picture.group)) members.set(picture.group, []);
    members.get(picture.group).push(i);
  });
  if (members.size) {
    const groups = [...members.keys()].sort((a, b) => data.groups[b][1] - data.groups[a][1] || a - b);
    const draw = (number) => {
      const [size, isAtOdds] = data.groups[number];
      const section = document.createElement("section");
      const head = section.appendChild(document.createElement("h3"));
      head.textContent = `Group ${number}: ${count(size)} pictures, verdicts ${isAtOdds ? "disagree" : "agree"}`;
      const shown = members.get(number).slice(0, GROUP_CARDS);
      const list = document.createElement("ul");
      list.className = "grid";
      list.setAttribute("aria-label", `Pictures of group ${number}`);
      list.append(...shown.map(card));
      const frame = section.appendChild(document.createElement("div"));
      frame.className = "safeqwen";
      frame.append(list);
      if (size > shown.length) {
        const note = section.appendChild(document.createElement("p"));
        note.className = "note";
        note.textContent = `${count(size - shown.length)} more of this group are not shown here.`;
      }
      return section;
    };
    paged(groups, GROUPS_PAGE, element("group-cards"), element("group-pages"), (page) => page.map(draw), (from, to) => {
      element("grouped").textContent = `Groups ${count(from)} to ${count(to)} of ${count(groups.length)}.`;
    });
  }
  tellCorrections();
  document.documentElement.dataset.ready = "true";
}
