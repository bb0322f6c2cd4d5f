// Reads what stands in the page and draws it.
import "./intl";
import "uplot/dist/uPlot.min.css";
import "./theme.css";
import "./page.css";
import "./card.css";
import { el } from "./dom";
import type { Group } from "./group";
import { build } from "./page";
import { readPage } from "./payload";
import { dark, startTheme } from "./theme";

declare global {
  interface Window {
    /** For tests: what the page shows. */
    dynaxx?: { state(): { ready: boolean; view: [number, number]; cursor: number | null; dark: boolean } };
  }
}

async function start(): Promise<void> {
  startTheme();
  const app = document.getElementById("app")!;
  let steps: Group;
  try {
    const [payload, arrays] = await readPage();
    const made = build(payload, arrays);
    steps = made.steps;
    app.replaceChildren(made.root);
  } catch (error) {
    app.replaceChildren(el("p", { class: "failure", role: "alert" }, `This report cannot be drawn: ${String(error)}`));
    throw error;
  }
  window.dynaxx = {
    state: () => ({ ready: true, view: steps.view, cursor: steps.cursor, dark: dark() }),
  };
}

void start();
