// A small label beside the pointer.
import type uPlot from "uplot";
import { el } from "./dom";

export interface Tooltip {
  /** Shows lines, the last one bold, and returns them as one. */
  show(plot: uPlot, lines: string[]): string;
  /** Returns "". */
  hide(): string;
}

export function tooltip(parent: HTMLElement): Tooltip {
  const box = el("div", { class: "tooltip", "aria-hidden": "true" });
  box.hidden = true;
  parent.append(box);
  return {
    show(plot, lines) {
      box.replaceChildren(...lines.map((line, i) => el(i === lines.length - 1 ? "b" : "div", {}, line)));
      box.hidden = false;
      const [outer, inner] = [parent.getBoundingClientRect(), plot.over.getBoundingClientRect()];
      const x = inner.left - outer.left + (plot.cursor.left ?? 0);
      const y = inner.top - outer.top + (plot.cursor.top ?? 0);
      const left = x + 14 + box.offsetWidth > outer.width ? x - 14 - box.offsetWidth : x + 14;
      box.style.left = `${Math.max(0, left)}px`;
      box.style.top = `${Math.max(0, Math.min(y + 12, outer.height - box.offsetHeight))}px`;
      return lines.join(", ");
    },
    hide() {
      box.hidden = true;
      return "";
    },
  };
}
