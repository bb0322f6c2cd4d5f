// A panel as a PNG: title, legend and plot on one canvas.
import type { Card } from "./card";
import { themed } from "./colour";
import { el } from "./dom";

const FAMILY = 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';

export function picture(made: Card, title: string): HTMLCanvasElement | null {
  const plot = made.body.querySelector("canvas");
  if (!plot) return null;
  const ratio = plot.width / plot.getBoundingClientRect().width;
  const entries = [...made.legend.querySelectorAll<HTMLElement>("[data-key]")].filter((e) => !e.classList.contains("off"));
  const [head, foot] = [30 * ratio, entries.length ? 26 * ratio : 8 * ratio];
  const canvas = el("canvas");
  canvas.width = plot.width;
  canvas.height = plot.height + head + foot;
  const draw = canvas.getContext("2d")!;
  draw.fillStyle = themed("card");
  draw.fillRect(0, 0, canvas.width, canvas.height);
  draw.fillStyle = themed("text");
  draw.font = `600 ${14 * ratio}px ${FAMILY}`;
  draw.fillText(title, 10 * ratio, 20 * ratio);
  draw.drawImage(plot, 0, head);
  let x = 10 * ratio;
  const y = head + plot.height + 16 * ratio;
  draw.font = `${11 * ratio}px ${FAMILY}`;
  for (const entry of entries) {
    const swatch = entry.querySelector("i");
    if (swatch) {
      draw.fillStyle = getComputedStyle(swatch).backgroundColor;
      draw.fillRect(x, y - 8 * ratio, 12 * ratio, 8 * ratio);
    }
    draw.fillStyle = themed("text");
    const text = entry.dataset.key ?? "";
    draw.fillText(text, x + 17 * ratio, y);
    x += draw.measureText(text).width + 36 * ratio;
  }
  return canvas;
}

export function download(made: Card, title: string): void {
  picture(made, title)?.toBlob((blob) => {
    if (!blob) return;
    const address = URL.createObjectURL(blob);
    const link = el("a", { href: address, download: `${title.replace(/[^\p{L}\p{N}]+/gu, "-")}.png` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  });
}
