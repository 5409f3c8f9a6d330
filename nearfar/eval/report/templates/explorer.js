(() => {
  const data = JSON.parse(document.getElementById("answers").textContent);
  if (data === null) return;
  const PAGE = 20;
  const SAME = 1e-9;
  const byId = (id) => document.getElementById(`explore-${id}`);
  const list = byId("list");
  const single = data.models.length === 1;
  const state = { text: "", filter: "all", order: "listed", left: 0, right: data.models.length - 1, page: 0 };

  // Texts of the user only ever become text nodes.
  const make = (tag, className, ...children) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    element.append(...children);
    return element;
  };
  const number = (value) => value.toFixed(3).replace("-", "\u2212");
  const counted = (value) => value.toLocaleString("en");
  const options = (select, pairs) => {
    for (const [value, name] of pairs) {
      const option = make("option", "", name);
      option.value = value;
      select.append(option);
    }
  };

  const queries = data.queries.map(([id, text, values, expected, total, returned], place) => ({
    id, text, values, expected, total, returned, place,
  }));
  // What a search looks through: the query, its id, and the documents shown with it.
  const haystack = (query) => {
    if (query.words === undefined) {
      const seen = [...query.expected.map(([at]) => at), ...query.returned.flatMap((of) => (of ?? []).map(([at]) => at))];
      const parts = [query.id, query.text, ...seen.map((at) => data.documents[at].join(" "))];
      query.words = parts.join("\n").toLowerCase();
    }
    return query.words;
  };

  const change = (query) => query.values[state.right] - query.values[state.left];
  const kind = (query) => {
    if (single) return query.values[0] <= SAME ? "none" : query.values[0] >= 1 - SAME ? "full" : "part";
    return change(query) > SAME ? "won" : change(query) < -SAME ? "lost" : "same";
  };
  const orders = {
    listed: (a, b) => a.place - b.place,
    change: (a, b) => Math.abs(change(b)) - Math.abs(change(a)) || a.place - b.place,
    lowest: (a, b) => a.values[state.right] - b.values[state.right] || a.place - b.place,
  };

  const documentOf = (at) => {
    const [id, text] = data.documents[at];
    return [make("span", "id", id), " ", text];
  };

  const rank = (places, model) => {
    const at = places[model];
    return `${at === null ? "not found" : `rank ${counted(at)}`} with ${data.models[model]}`;
  };

  const expectedList = (query, sides) => {
    const items = query.expected.map(([at, grade, places]) => make(
      "li", "", ...documentOf(at), grade === 1 ? "" : ` grade ${grade}`, " ",
      make("span", "score", sides.map((model) => rank(places, model)).join(", ")),
    ));
    const more = query.total > items.length ? `, ${items.length} of ${counted(query.total)}` : "";
    return make("div", "whole", make("p", "note", `Expected${more}`), make("ul", "", ...items));
  };

  const answers = (query, model) => {
    const found = query.returned[model];
    const items = (found ?? []).map(([at, score, relevant]) => make(
      "li", relevant ? "relevant" : "",
      ...(relevant ? [make("span", "mark", "relevant"), " "] : []), ...documentOf(at), " ",
      make("span", "score", number(score)),
    ));
    const title = make("p", "note", `${data.models[model]}, ${data.metric} ${number(query.values[model])}`);
    const body = items.length ? make("ol", "", ...items) : make("p", "", found ? "Nothing was returned." : "Not recorded.");
    return make("div", "", title, body);
  };

  const sides = () => (state.left === state.right ? [state.right] : [state.left, state.right]);

  const row = (query) => {
    const marks = { won: ["▲", "won"], lost: ["▼", "lost"], same: ["=", "unchanged"] };
    const values = make("span", "values", sides().map((model) => number(query.values[model])).join(" → "));
    if (!single) {
      const [sign, word] = marks[kind(query)];
      const mark = make("span", kind(query), ` ${sign}`);
      mark.setAttribute("aria-hidden", "true");
      values.append(mark, make("span", "unseen", ` ${word}`));
    }
    const details = make("details", "", make("summary", "", make("b", "", query.text || query.id), values));
    details.addEventListener("toggle", () => {
      if (details.open && details.children.length === 1)
        details.append(make("div", "sides", expectedList(query, sides()), ...sides().map((model) => answers(query, model))));
    });
    return make("li", "", details);
  };

  const show = () => {
    const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
    const found = queries
      .filter((query) => state.filter === "all" || kind(query) === state.filter)
      .filter((query) => words.every((word) => haystack(query).includes(word)))
      .sort(orders[state.order]);
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const first = state.page * PAGE;
    const shown = found.slice(first, first + PAGE);
    list.replaceChildren(...shown.map(row));
    list.start = first + 1;
    const range = shown.length ? `, ${counted(first + 1)} to ${counted(first + shown.length)} shown` : "";
    byId("count").textContent = `${counted(found.length)} of ${counted(queries.length)} queries${range}.`;
    byId("previous").disabled = state.page === 0;
    byId("next").disabled = state.page === pages - 1;
  };

  const set = (change) => { Object.assign(state, { page: 0 }, change); show(); };
  const turn = (by) => {
    set({ page: state.page + by });
    list.querySelector("summary")?.focus();
  };

  options(byId("filter"), single
    ? [["all", "All"], ["none", `${data.metric} 0`], ["part", "Between 0 and 1"], ["full", `${data.metric} 1`]]
    : [["all", "All"], ["won", "Wins"], ["lost", "Losses"], ["same", "Unchanged"]]);
  options(byId("order"), [
    ["listed", "As listed"],
    ...(single ? [] : [["change", "Largest change first"]]),
    ["lowest", "Lowest value first"],
  ]);
  for (const side of ["left", "right"]) {
    options(byId(side), data.models.map((name, place) => [String(place), name]));
    byId(side).value = String(state[side]);
    byId(side).addEventListener("change", (event) => set({ [side]: Number(event.target.value) }));
  }
  byId("models").hidden = data.models.length < 3;
  byId("text").addEventListener("input", (event) => set({ text: event.target.value }));
  byId("filter").addEventListener("change", (event) => set({ filter: event.target.value }));
  byId("order").addEventListener("change", (event) => set({ order: event.target.value }));
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));

  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches?.("input, select, textarea");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      byId("text").focus();
    }
  });
  list.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || event.target.tagName !== "SUMMARY") return;
    const all = [...list.querySelectorAll("summary")];
    event.preventDefault();
    all[all.indexOf(event.target) + step]?.focus();
  });

  document.getElementById("explore").hidden = false;
  show();
})();
