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
    ["id", "label", "dataset", "asked"].filter((name) => name in named).map((name) => text(named[name], row) ?? "").join("\n").toLowerCase());
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
    byId("count").textContent = `${order.length.toLocaleString("en")} of ${count.toLocaleString("en")} clip${count === 1 ? "" : "s"}`;
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
      const line = timeline(row, player);
      if (line) parts.push(line);
      player.addEventListener("error", () => {
        const note = document.createElement("p");
        note.className = "note";
        note.textContent = `The stem cannot be played from here: ${player.getAttribute("src")}`;
        player.replaceWith(note);
      });
      parts.push(player);
      if (play) playFrom(player, segmentsOf(row).length ? segments.start[segmentsOf(row)[0]] : 0);
    }
    parts.push(facts);
    detail.replaceChildren(...parts);
    detail.hidden = false;
  }

  // ----- where its sound was found ------------------------------------------------------------
  const segments = data.segments;
  const MOST_BUTTONS = 400;
  function segmentsOf(row) {
    if (!segments) return [];
    const from = segments.first[row], to = segments.first[row + 1];
    return Array.from({ length: to - from }, (_, place) => from + place);
  }
  function playFrom(player, start) {
    const begin = () => { player.currentTime = start; player.play().catch(() => { /* said by its error event */ }); };
    player.onloadedmetadata = null; // not where another clip, asked for before, was to begin
    if (!start || player.readyState > 0) begin();
    else {
      player.onloadedmetadata = () => { player.onloadedmetadata = null; begin(); };
      player.preload = "auto";
      player.load();
    }
  }
  const spoken = (place) => {
    const score = segments.score[place];
    const said = score === null ? "" : `, score ${score.toFixed(2)}`;
    return `${segments.start[place].toFixed(1)} to ${segments.end[place].toFixed(1)} s${said}`;
  };
  function timeline(row, player) {
    const places = segmentsOf(row);
    const length = named.duration_s.values[row];
    if (!places.length || !length) return null;
    const line = document.createElement("div");
    line.className = "timeline";
    line.setAttribute("role", "group");
    line.setAttribute("aria-label", `${places.length} segment${places.length === 1 ? "" : "s"} in ${length.toFixed(1)} s`);
    for (const place of places.slice(0, MOST_BUTTONS)) {
      const button = document.createElement("button");
      button.type = "button";
      button.style.left = `${(100 * segments.start[place]) / length}%`;
      button.style.width = `${(100 * (segments.end[place] - segments.start[place])) / length}%`;
      button.title = spoken(place);
      button.setAttribute("aria-label", `Play ${spoken(place)}`);
      button.addEventListener("click", () => playFrom(player, segments.start[place]));
      line.append(button);
    }
    return line;
  }

  // ----- judging segments by ear --------------------------------------------------------------
  const MOST_JUDGED = 200, LEAD_S = 0.3;
  const rowOf = (place) => {
    let low = 0, high = count;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (segments.first[middle] <= place) low = middle; else high = middle;
    }
    return low;
  };
  function drawnEvenly(places) {
    const scores = places.map((place) => segments.score[place]);
    const low = scores.reduce((a, b) => Math.min(a, b), Infinity);
    const width = scores.reduce((a, b) => Math.max(a, b), -Infinity) - low || 1;
    const bins = Array.from({ length: segments.num_bins }, () => []);
    places.forEach((place, at) => {
      const bin = Math.floor(((scores[at] - low) / width) * bins.length);
      bins[Math.min(bin, bins.length - 1)].push(place);
    });
    const mixed = (place) => Math.imul(place + 1, 2654435761) >>> 0; // the same order every time
    for (const bin of bins) bin.sort((a, b) => mixed(a) - mixed(b));
    const chosen = [];
    for (let turn = 0; chosen.length < Math.min(MOST_JUDGED, places.length); turn++) {
      for (const bin of bins) if (turn < bin.length && chosen.length < MOST_JUDGED) chosen.push(bin[turn]);
    }
    return chosen;
  }
  const FORMULA = /^[=+\-@\t\r'\uff1d\uff0b\uff0d\uff20]/;
  const cell = (value) => `"${(FORMULA.test(value) ? "'" + value : value).replaceAll('"', '""')}"`;
  if (segments) {
    // Judgements are kept in the browser, for each run, so that a reload does not lose them.
    const answers = new Map();
    const storeOf = (run) => `reviews of ${data.runs[run]}`;
    const keptOf = (run) => { try { return JSON.parse(localStorage.getItem(storeOf(run))); } catch { return null; } };
    const nameOf = (place) => [text(named.id, rowOf(place)), segments.start[place], segments.end[place], segments.score[place]].join("\n");
    const runOf = (place) => named.run.codes[rowOf(place)];
    let isKept = true;
    const judge = (place, answer) => {
      answers.set(place, answer);
      const run = runOf(place);
      const all = { ...keptOf(run), [nameOf(place)]: answer }; // another tab's among them
      try { localStorage.setItem(storeOf(run), JSON.stringify(all)); } catch { isKept = false; }
    };
    const kept = data.runs.map((_, run) => keptOf(run));
    segments.start.forEach((_, place) => {
      const answer = kept[runOf(place)]?.[nameOf(place)];
      if (answer === "yes" || answer === "no") answers.set(place, answer);
    });
    const groups = new Map();
    segments.query.forEach((query, place) => {
      if (segments.score[place] === null) return;
      const run = runOf(place);
      const key = `${run}/${query}`;
      if (!groups.has(key)) groups.set(key, { run, query, places: [] });
      groups.get(key).places.push(place);
    });
    for (const [key, group] of groups) {
      const run = named.run.names.length > 1 ? ` · ${named.run.names[group.run]}` : "";
      byId("judge-query").add(new Option(`${segments.queries[group.query]}${run} (${group.places.length.toLocaleString("en")})`, key));
    }
    const box = byId("judge"), player = byId("judge-player");
    let chosen = [], at = 0, end = Infinity;
    player.addEventListener("timeupdate", () => { if (player.currentTime >= end) player.pause(); });
    player.addEventListener("error", () => { byId("judge-place").textContent += ". Its stem cannot be played from here."; });
    const written = () => {
      const lines = ["run,id,start_s,end_s,positive_text,score,present"];
      for (const [place, answer] of answers) {
        const row = rowOf(place);
        lines.push([cell(text(named.run, row)), cell(text(named.id, row)), segments.start[place].toFixed(3),
          segments.end[place].toFixed(3), cell(segments.queries[segments.query[place]]),
          String(segments.score[place]), answer].join(","));
      }
      return lines.join("\r\n") + "\r\n";
    };
    let address = null;
    const show = () => {
      const csv = written();
      byId("judge-kept").hidden = isKept;
      byId("judge-text").textContent = csv;
      if (address) URL.revokeObjectURL(address);
      address = URL.createObjectURL(new Blob([csv], { type: "text/csv" }));
      byId("judge-save").href = address;
      if (at >= chosen.length) {
        byId("judge-title").textContent = "All of these are judged";
        byId("judge-place").textContent = `${answers.size} judged. Save them, or take another query.`;
        return;
      }
      const place = chosen[at], row = rowOf(place);
      byId("judge-title").textContent = segments.queries[segments.query[place]];
      byId("judge-place").textContent = `${at + 1} of ${chosen.length}: ${text(named.id, row)}, ${spoken(place)}`
        + (answers.has(place) ? ` (${answers.get(place)})` : "");
      const href = data.stems[row];
      player.hidden = href === null;
      if (href === null) {
        player.removeAttribute("src"); // or the stem of the segment before would go on
        player.load();
        byId("judge-place").textContent += ". Its stem is not where a page can reach it.";
        return;
      }
      const source = data.folders[named.run.codes[row]] + href;
      if (player.getAttribute("src") !== source) player.src = source;
      end = segments.end[place] + LEAD_S;
      playFrom(player, Math.max(0, segments.start[place] - LEAD_S));
    };
    const ACTIONS = {
      yes: () => { judge(chosen[at], "yes"); at++; },
      no: () => { judge(chosen[at], "no"); at++; },
      skip: () => { at++; },
      back: () => { at = Math.max(0, at - 1); },
      again: () => { /* shown again, and so heard */ },
      forget: () => {
        if (!confirm(`Forget all judgements of this page (${answers.size})?`)) return;
        answers.clear();
        at = 0;
        try { data.runs.forEach((_, run) => localStorage.removeItem(storeOf(run))); } catch { isKept = false; }
      },
    };
    const act = (name) => {
      if (at >= chosen.length && name !== "back" && name !== "forget") return;
      ACTIONS[name]();
      show();
    };
    box.addEventListener("click", (event) => {
      const answer = event.target.dataset.answer;
      if (answer) act(answer);
    });
    const KEYS = { y: "yes", n: "no", s: "skip", b: "back", " ": "again" };
    box.addEventListener("keydown", (event) => {
      const key = event.key.toLowerCase();
      if (!(key in KEYS) || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === " " && event.target !== box) return; // a button's own key
      event.preventDefault();
      act(KEYS[key]);
    });
    byId("judge-start").addEventListener("click", () => {
      chosen = drawnEvenly(groups.get(byId("judge-query").value).places);
      at = chosen.findIndex((place) => !answers.has(place));
      if (at < 0) at = chosen.length;
      box.hidden = false;
      box.focus();
      show();
    });
  }

  const form = byId("filters");
  let timer = 0;
  form.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(update, 60); });
  form.addEventListener("reset", () => setTimeout(update, 0));
  form.addEventListener("submit", (event) => event.preventDefault());
  if (named.sdri_db?.values.every((value) => value === null) && (named.presence ?? named.active_s)) {
    sortBy(named.presence ?? named.active_s); // without references: what was found, best first
  } else update();
})();
