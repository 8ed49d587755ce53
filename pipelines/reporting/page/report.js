"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);

  // ----- colours ---------------------------------------------------------------------------
  const THEMES = { auto: "Auto", dark: "Dark", light: "Light" };
  const SPOKEN = { auto: "as the system", dark: "dark", light: "light" };
  const remembered = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const setTheme = (name) => {
    if (name === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    const button = byId("theme");
    button.dataset.now = name;
    button.querySelector("span").textContent = THEMES[name];
    button.setAttribute("aria-label", `Colours: ${SPOKEN[name]}. Change`);
    try { localStorage.setItem("theme", name); } catch { /* a page from disk may not remember */ }
  };
  setTheme(remembered() in THEMES ? remembered() : "auto");
  byId("theme").addEventListener("click", () => {
    const names = Object.keys(THEMES);
    setTheme(names[(names.indexOf(byId("theme").dataset.now) + 1) % names.length]);
  });

  // ----- the clips, column by column -------------------------------------------------------
  const ROW_PX = 34;
  const columns = data.columns;
  const count = data.num_rows;
  const text = (column, row) => {
    if (column.values === undefined) return column.names[column.codes[row]];
    const value = column.values[row];
    return column.digits === undefined ? value : value === null ? "–" : value.toFixed(column.digits);
  };
  const named = Object.fromEntries(columns.map((column) => [column.name, column]));
  const haystack = Array.from({ length: count }, (_, row) =>
    ["id", "label", "dataset"].map((name) => text(named[name], row) ?? "").join("\n").toLowerCase());
  let order = Uint32Array.from({ length: count }, (_, row) => row);
  let sorted = { column: null, down: false };
  let active = -1;
  if (innerWidth < 640) named.id.width = 150;

  const heads = byId("heads");
  columns.forEach((column, index) => {
    const head = document.createElement("th");
    head.scope = "col";
    head.setAttribute("role", "columnheader");
    head.setAttribute("aria-colindex", String(index + 1));
    head.style.width = `${column.width}px`;
    if (column.digits !== undefined) head.className = "number";
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = column.title;
    button.addEventListener("click", () => sortBy(column));
    head.append(button);
    heads.append(head);
    column.head = head;
  });
  const grid = byId("grid");
  grid.style.minWidth = `${columns.reduce((sum, column) => sum + column.width, 0)}px`;
  grid.setAttribute("aria-colcount", String(columns.length));

  const ranked = (column) => {
    if (column.rank) return column.rank;
    if (column.digits !== undefined) return (column.rank = column.values);
    const all = Array.from({ length: count }, (_, row) => text(column, row) ?? "");
    const collator = new Intl.Collator("en", { numeric: true });
    const places = new Map([...new Set(all)].sort(collator.compare).map((value, place) => [value, place]));
    return (column.rank = all.map((value) => places.get(value)));
  };
  function sortBy(column) {
    const down = sorted.column === column ? !sorted.down : column.digits !== undefined;
    sorted = { column, down };
    for (const other of columns) other.head.removeAttribute("aria-sort");
    column.head.setAttribute("aria-sort", down ? "descending" : "ascending");
    for (const other of columns) {
      const mark = other === column ? (down ? " ▾" : " ▴") : "";
      other.head.firstChild.textContent = other.title + mark;
    }
    update();
  }

  // ----- filters ---------------------------------------------------------------------------
  const fields = ["run", "dataset", "query"];
  for (const name of fields) {
    const select = byId(name);
    named[name].names.forEach((value, code) => select.add(new Option(value, String(code))));
  }
  byId("run-field").hidden = named.run.names.length < 2;
  for (const column of columns.filter((each) => each.digits !== undefined)) {
    byId("metric").add(new Option(column.title, column.name));
  }
  const number = (id) => (byId(id).value === "" ? null : Number(byId(id).value));

  function update() {
    const words = byId("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    const codes = fields.map((name) => [named[name].codes, byId(name).value]).filter((pair) => pair[1] !== "");
    const low = number("low"), high = number("high");
    const measured = named[byId("metric").value]?.values;
    const onlyUndefined = byId("undefined").checked;
    const kept = [];
    for (let row = 0; row < count; row++) {
      if (codes.some(([all, code]) => all[row] !== Number(code))) continue;
      if (onlyUndefined && !data.reasons[row]) continue;
      if (low !== null && !(measured[row] !== null && measured[row] >= low)) continue;
      if (high !== null && !(measured[row] !== null && measured[row] <= high)) continue;
      if (words.some((word) => !haystack[row].includes(word))) continue;
      kept.push(row);
    }
    if (sorted.column) {
      const rank = ranked(sorted.column), sign = sorted.down ? -1 : 1;
      kept.sort((a, b) => {
        const x = rank[a], y = rank[b];
        if (x === y) return a - b;
        if (x === null) return 1; // undefined last, either way
        if (y === null) return -1;
        return x < y ? -sign : sign;
      });
    }
    order = Uint32Array.from(kept);
    active = order.length ? 0 : -1;
    viewport.scrollTop = 0;
    byId("count").textContent = `${order.length.toLocaleString("en")} of ${count.toLocaleString("en")} clips`;
    grid.setAttribute("aria-rowcount", String(order.length + 1));
    drawn = "";
    draw();
  }

  // ----- the part of the table that is seen --------------------------------------------------
  const viewport = byId("viewport");
  const body = byId("rows");
  let drawn = "";
  const space = (rows) => {
    const line = document.createElement("tr");
    line.className = "space";
    line.setAttribute("aria-hidden", "true");
    line.style.height = `${rows * ROW_PX}px`;
    const cell = document.createElement("td");
    cell.colSpan = columns.length;
    line.append(cell);
    return line;
  };
  function draw() {
    const first = Math.max(0, Math.floor(viewport.scrollTop / ROW_PX) - 8);
    const last = Math.min(order.length, first + Math.ceil(viewport.clientHeight / ROW_PX) + 18);
    const key = `${first}-${last}-${active}`;
    if (key === drawn) return;
    drawn = key;
    const lines = [space(first)];
    for (let place = first; place < last; place++) lines.push(lineOf(place));
    lines.push(space(order.length - last));
    body.replaceChildren(...lines);
    if (active >= first && active < last) viewport.setAttribute("aria-activedescendant", `clip-${active}`);
    else viewport.removeAttribute("aria-activedescendant");
  }
  function lineOf(place) {
    const row = order[place];
    const line = document.createElement("tr");
    line.id = `clip-${place}`;
    line.dataset.place = String(place);
    line.setAttribute("role", "row");
    line.setAttribute("aria-rowindex", String(place + 2));
    line.setAttribute("aria-selected", String(place === active));
    columns.forEach((column, index) => {
      const cell = document.createElement("td");
      cell.setAttribute("role", "gridcell");
      cell.setAttribute("aria-colindex", String(index + 1));
      const shown = text(column, row) ?? "–";
      cell.textContent = shown;
      if (column.digits !== undefined) cell.className = "number";
      else cell.title = shown;
      line.append(cell);
    });
    return line;
  }
  let waiting = false;
  viewport.addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  });
  addEventListener("resize", draw);

  function moveTo(place) {
    if (!order.length) return;
    active = Math.min(order.length - 1, Math.max(0, place));
    const top = active * ROW_PX, room = viewport.clientHeight - 2 * ROW_PX;
    if (top < viewport.scrollTop) viewport.scrollTop = top;
    else if (top > viewport.scrollTop + room) viewport.scrollTop = top - room;
    draw();
  }
  const page = () => Math.max(1, Math.floor(viewport.clientHeight / ROW_PX) - 2);
  const MOVES = {
    ArrowDown: () => active + 1, ArrowUp: () => active - 1, PageDown: () => active + page(),
    PageUp: () => active - page(), Home: () => 0, End: () => order.length - 1,
  };
  viewport.addEventListener("keydown", (event) => {
    if (event.target !== viewport) return;
    if (event.key in MOVES) moveTo(MOVES[event.key]());
    else if (event.key === "Enter" && active >= 0) open(order[active], true);
    else return;
    event.preventDefault();
  });
  body.addEventListener("click", (event) => {
    const line = event.target.closest("tr[data-place]");
    if (!line) return;
    moveTo(Number(line.dataset.place));
    open(order[active], true);
  });

  // ----- one clip ----------------------------------------------------------------------------
  function open(row, play) {
    const detail = byId("detail");
    const title = document.createElement("h3");
    title.textContent = text(named.id, row);
    const facts = document.createElement("dl");
    const add = (name, value) => {
      const term = document.createElement("dt"), what = document.createElement("dd");
      term.textContent = name;
      what.textContent = value;
      facts.append(term, what);
    };
    for (const column of columns) if (column !== named.id) add(column.title, text(column, row) ?? "–");
    if (data.reasons[row]) add("Undefined", data.reasons[row]);
    add("Made by", data.provenances[data.provenance[row]]);
    const parts = [title];
    const href = data.stems[row];
    if (href === null) {
      const note = document.createElement("p");
      note.className = "note";
      note.textContent = "The stem is not where a page can reach it.";
      parts.push(note);
    } else {
      const player = document.createElement("audio");
      player.controls = true;
      player.preload = "none";
      player.src = data.folders[named.run.codes[row]] + href;
      player.setAttribute("aria-label", "Stem");
      player.addEventListener("error", () => {
        const note = document.createElement("p");
        note.className = "note";
        note.textContent = `The stem cannot be played from here: ${player.getAttribute("src")}`;
        player.replaceWith(note);
      });
      parts.push(player);
      if (play) player.play().catch(() => { /* says so through its error event */ });
    }
    parts.push(facts);
    detail.replaceChildren(...parts);
    detail.hidden = false;
  }

  const form = byId("filters");
  let timer = 0;
  form.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(update, 60); });
  form.addEventListener("reset", () => setTimeout(update, 0));
  form.addEventListener("submit", (event) => event.preventDefault());
  update();
})();
