"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const specifications = JSON.parse(document.getElementById("charts").textContent);
  const preference = window.matchMedia("(prefers-color-scheme: dark)");
  root.classList.add("js");

  // Storage is refused in some private windows and for some local files.
  const remembered = () => { try { return localStorage.getItem("nearfar-theme"); } catch { return null; } };
  const remember = (theme) => { try { localStorage.setItem("nearfar-theme", theme); } catch { /* this page only */ } };

  const colour = (name, opacity) => {
    const hex = getComputedStyle(root).getPropertyValue(`--${name}`).trim();
    const parts = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    return `rgba(${parts.join(",")},${opacity ?? 1})`;
  };

  // "@name/opacity" under a key that holds a colour becomes the colour of the present theme.
  const resolve = (value, key) => {
    if (Array.isArray(value)) return value.map((item) => resolve(item, ""));
    if (value !== null && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolve(v, k)]));
    if (typeof value === "string" && key.endsWith("color") && value.startsWith("@"))
      return colour(...value.slice(1).split("/"));
    return value;
  };

  const axis = (given) => ({
    ...given,
    automargin: true,
    color: colour("muted"),
    gridcolor: colour("rule", 0.7),
    linecolor: colour("rule"),
    zeroline: false,
    fixedrange: true,
    title: { ...given.title, standoff: 10, font: { size: 13 } },
  });

  const layout = (given) => ({
    xaxis: axis({ ...given.xaxis, showgrid: false, showline: true, ticks: "outside", ticklen: 4 }),
    yaxis: axis({ ...given.yaxis, ticklen: 4 }),
    showlegend: given.showlegend,
    margin: { l: 48, r: 24, t: 12, b: 44 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("ink") },
    legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", itemclick: false, itemdoubleclick: false },
    hoverlabel: { bgcolor: colour("sunken"), bordercolor: colour("rule"), font: { color: colour("ink") } },
    hovermode: "closest",
  });

  const draw = () => {
    for (const [id, chart] of Object.entries(specifications))
      Plotly.react(id, resolve(chart.data, ""), layout(chart.layout), { responsive: true, displayModeBar: false });
  };

  // Only what can scroll needs to be reached by keyboard.
  const reach = () => {
    for (const box of document.querySelectorAll(".scroll"))
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
  };

  const apply = (theme) => {
    root.dataset.theme = theme;
    button.setAttribute("aria-pressed", String(theme === "dark"));
    draw();
  };

  const chosen = () => remembered() ?? (preference.matches ? "dark" : "light");

  button.hidden = false;
  button.addEventListener("click", () => {
    const theme = root.dataset.theme === "dark" ? "light" : "dark";
    remember(theme);
    apply(theme);
  });
  preference.addEventListener("change", () => apply(chosen()));

  // Paper is white, and a reader of paper cannot open what is folded.
  let folded = [];
  window.addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((block) => { block.open = true; });
    apply("light");
  });
  window.addEventListener("afterprint", () => {
    folded.forEach((block) => { block.open = false; });
    apply(chosen());
  });

  document.querySelectorAll("details").forEach((block) => block.addEventListener("toggle", reach));
  window.addEventListener("resize", reach);
  apply(chosen());
  reach();
})();
