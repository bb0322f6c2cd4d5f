// The page: head, summary, navigation, one section per figure, and what is not shown.
import { card } from "./card";
import { LINE_COLOURS } from "./colour";
import { button, el } from "./dom";
import { fieldCard } from "./field";
import { where } from "./format";
import { Group, type Range } from "./group";
import { Cells, heatCard } from "./heatmap";
import { linesCard, xRange } from "./lines";
import { pathCard } from "./path";
import type { Arrays, FieldPanel, HeatPanel, LinesPanel, Panel, Payload, Run, TablePanel } from "./payload";
import { dark, onTheme, toggleTheme } from "./theme";

/** Rows of a table that are shown at once. */
const SHOWN_ROWS = 12;

type Shown<P extends Panel> = [Run, P][];

export function build(payload: Payload, arrays: Arrays): { root: HTMLElement; steps: Group } {
  const { runs } = payload;
  const reset = button("", "Show all steps", () => steps.zoom(null));
  reset.className = "reset";
  reset.hidden = true;
  const steps = new Group(allSteps(runs, arrays), (range) => {
    reset.hidden = range === null;
    if (range) reset.textContent = `steps ${where(range[0])}–${where(range[1])} ✕`;
  });
  const sections = figures(runs).map(([name, title]) => section(name, title, runs, arrays, steps));
  const missing = notShown(runs);
  const links = [...sections, ...(missing ? [missing] : [])].map((part) =>
    el("a", { href: `#${part.id}` }, part.querySelector("h2")!.textContent!),
  );
  const nav = el("nav", { "aria-label": "Figures" }, ...links);
  const main = el("main", { id: "main" }, summaries(runs), ...sections);
  if (missing) main.append(missing);
  follow(nav, [...main.querySelectorAll("section")]);
  const root = el("div", { class: "page" }, head(runs, reset), nav, main);
  return { root, steps };
}

function head(runs: Run[], reset: HTMLElement): HTMLElement {
  const theme = button("", "Light or dark", toggleTheme);
  const label = () => (theme.textContent = dark() ? "☀ light" : "☾ dark");
  label();
  onTheme(label);
  const names = el("h1", {}, el("span", { class: "brand" }, "Dynaxx"), runs.map((run) => run.name).join(" · "));
  const skip = el("a", { class: "skip", href: "#main" }, "Skip to the figures");
  return el("header", { class: "head" }, skip, names, el("div", { class: "tools" }, reset, theme));
}

function summaries(runs: Run[]): HTMLElement {
  const strips = runs.map((run, i) => {
    const strip = el("dl", { class: "summary" });
    for (const fact of run.summary) {
      const value = el("dd", {}, fact.value);
      if (fact.detail) value.append(el("small", {}, fact.detail));
      strip.append(el("div", fact.alarm ? { class: "alarm" } : {}, el("dt", {}, fact.label), value));
    }
    if (runs.length === 1) return strip;
    const swatch = el("i", { class: "line", style: `--swatch: var(--line-${i % LINE_COLOURS})` });
    return el("div", { class: "strip" }, el("h2", {}, swatch, run.name), strip);
  });
  return el("div", { class: "summaries" }, ...strips);
}

/** Name and title of every figure that any run has, in order. */
function figures(runs: Run[]): [string, string][] {
  const order = new Map<string, string>();
  // The longest list first: the others' figures are mostly among them, in the same order.
  for (const run of [...runs].sort((a, b) => b.figures.length - a.figures.length)) {
    for (const figure of run.figures) order.set(figure.name, figure.title);
  }
  return [...order];
}

function section(name: string, title: string, runs: Run[], arrays: Arrays, steps: Group): HTMLElement {
  const panels = new Map<string, Shown<Panel>>();
  for (const run of runs) {
    for (const panel of run.figures.find((figure) => figure.name === name)?.panels ?? []) {
      const key = `${panel.kind} ${panel.title}`;
      panels.set(key, [...(panels.get(key) ?? []), [run, panel]]);
    }
  }
  const grid = el("div", { class: "grid" });
  for (const shown of panels.values()) {
    const made = cards(shown, runs.length > 1, arrays, steps);
    // What cannot be laid over each other stands side by side, in a row of its own.
    grid.append(made.length > 1 ? el("div", { class: "row wide" }, ...made) : made[0]!);
  }
  if (runs.length === 1) grid.querySelector(".heat")?.classList.add("wide");
  // No hole in the grid: the first of an odd number of half-width cards takes a whole row.
  const half = [...grid.children].filter((made) => !made.classList.contains("wide"));
  if (half.length % 2 === 1) half[0]!.classList.add("wide");
  return el("section", { id: name, "aria-label": title }, el("h2", {}, title), grid);
}

function cards(shown: Shown<Panel>, several: boolean, arrays: Arrays, steps: Group): HTMLElement[] {
  const subtitle = (run: Run) => (several ? run.name : "");
  switch (shown[0]![1].kind) {
    case "lines": {
      const panels = shown as Shown<LinesPanel>;
      return [linesCard(panels, several, arrays, panels[0]![1].x_label === "step" ? steps : ownGroup(panels, arrays))];
    }
    case "path":
      return (shown as Shown<LinesPanel>).map(([run, panel]) => pathCard(run, panel, subtitle(run), arrays));
    case "heat": {
      const panels = shown as Shown<HeatPanel>;
      // One colour scale for all runs: the same colour is the same value.
      const full = panels.map(([, panel]) => panel).filter((panel) => !panel.empty);
      const colours: Range = full.length
        ? [Math.min(...full.map((panel) => panel.colours[0])), Math.max(...full.map((panel) => panel.colours[1]))]
        : [0, 0];
      return panels.map(([run, panel]) => {
        // Only steps are one axis throughout the page; any other is the panel's own.
        const x = arrays.get(run, panel.x_array);
        const group = panel.x_label === "step" ? steps : new Group([x[0]!, x[x.length - 1]!]);
        return heatCard(run, panel, colours, subtitle(run), arrays, group);
      });
    }
    case "field":
      return (shown as Shown<FieldPanel>).map(([run, panel]) => fieldCard(run, panel, subtitle(run), arrays));
    case "table":
      return (shown as Shown<TablePanel>).map(([run, panel]) => tableCard(panel, subtitle(run)));
  }
}

function tableCard(panel: TablePanel, subtitle: string): HTMLElement {
  const made = card(panel.title, subtitle, panel.note);
  const row = (cells: string[]) => el("tr", {}, ...cells.map((cell) => el("td", {}, cell)));
  const headed = panel.header.some(Boolean);
  const headRow = () => el("thead", {}, el("tr", {}, ...panel.header.map((name) => el("th", { scope: "col" }, name))));
  const table = (rows: string[][]) => {
    const body = el("tbody", {}, ...rows.map(row));
    return headed ? el("table", {}, headRow(), body) : el("table", { class: "facts" }, body);
  };
  made.body.append(table(panel.rows.slice(0, SHOWN_ROWS)));
  if (panel.rows.length > SHOWN_ROWS) {
    made.body.append(
      button(`show all ${panel.rows.length}`, "Show the whole table", () => made.body.replaceChildren(table(panel.rows))),
    );
  }
  made.root.classList.add("table");
  return made.root;
}

function notShown(runs: Run[]): HTMLElement | null {
  const several = runs.length > 1;
  const rows = runs.flatMap((run) => run.missing.map((m) => [m.title, several ? `${run.name}: ${m.reason}` : m.reason]));
  if (!rows.length) return null;
  const list = el("dl", { class: "missing" });
  for (const [title, reason] of rows) list.append(el("dt", {}, title!), el("dd", {}, reason!));
  const title = "Not shown, and why";
  return el("section", { id: "not-shown", class: "quiet", "aria-label": title }, el("h2", {}, title), list);
}

function allSteps(runs: Run[], arrays: Arrays): Range {
  const ranges: Range[] = [];
  for (const run of runs) {
    for (const panel of run.figures.flatMap((figure) => figure.panels)) {
      if (panel.kind === "heat") {
        const { x, columns } = new Cells(panel, run, arrays);
        ranges.push([x[0]!, x[columns]!]);
      } else if (panel.kind === "lines" && panel.x_label === "step") {
        const range = xRange(panel, run, arrays);
        if (range) ranges.push(range);
      }
    }
  }
  if (!ranges.length) return [0, 1];
  return [Math.min(...ranges.map((r) => r[0])), Math.max(...ranges.map((r) => r[1]))];
}

function ownGroup(panels: Shown<LinesPanel>, arrays: Arrays): Group {
  const ranges = panels.map(([run, panel]) => xRange(panel, run, arrays)).filter((range) => range !== null);
  if (!ranges.length) return new Group([0, 1]);
  return new Group([Math.min(...ranges.map((r) => r[0])), Math.max(...ranges.map((r) => r[1]))]);
}

/** Marks the section in view in the navigation. */
function follow(nav: HTMLElement, sections: HTMLElement[]): void {
  const mark = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        for (const link of nav.querySelectorAll("a")) {
          link.toggleAttribute("aria-current", link.hash === `#${entry.target.id}`);
        }
      }
    },
    { rootMargin: "-15% 0px -75% 0px" },
  );
  for (const part of sections) mark.observe(part);
}
