// The frame of a panel: title, buttons, the plot, legend, note.
import { button, el } from "./dom";
import { download } from "./image";

export interface Card {
  root: HTMLElement;
  body: HTMLElement;
  legend: HTMLElement;
  tools: HTMLElement;
}

export function card(title: string, subtitle: string, note: string): Card {
  const tools = el("div", { class: "tools" });
  const heading = el("h3", {}, title);
  if (subtitle) heading.append(el("span", { class: "run" }, subtitle));
  const legend = el("div", { class: "legend" });
  const body = el("div", { class: "body" });
  const root = el("article", { class: "card" }, el("header", {}, heading, tools), legend, body);
  if (note) root.append(el("p", { class: "note" }, note));
  return { root, body, legend, tools };
}

/** The buttons that every picture has. */
export function addTools(made: Card, title: string, csv: () => string): void {
  made.tools.append(
    button("CSV", "Copy the numbers in view as drawn", (self) => void copy(csv(), self)),
    button("PNG", "Download the picture", () => download(made, title)),
  );
}

export function addLog(made: Card, log: boolean, set: (log: boolean) => void): void {
  const toggle = button("log", "Logarithmic or linear values", (self) => {
    const now = self.getAttribute("aria-pressed") !== "true";
    self.setAttribute("aria-pressed", String(now));
    set(now);
  });
  toggle.setAttribute("aria-pressed", String(log));
  made.tools.prepend(toggle);
}

async function copy(text: string, self: HTMLButtonElement): Promise<void> {
  const before = self.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Pages opened from disk may be refused the clipboard; the old way is open to them.
    const area = el("textarea", { class: "offscreen", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  self.textContent = "copied";
  setTimeout(() => (self.textContent = before), 1500);
}
