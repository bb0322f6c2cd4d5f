// Colours that colour-blind readers can tell apart, for light and dark pages.
import { dark } from "./theme";

/** viridis at 17 even places; between them it is linear to within one step of 255. */
const VIRIDIS =
  "44015448186a472d7b4240863b528b33638d2c728e26828e21918c1fa08828ae803fbc735ec96284d44baddc30d8e219fde725";

/** Curves share the colours of the style sheet: Okabe & Ito 2008, without yellow and black. */
export const LINE_COLOURS = 8;

export function lineColour(index: number): string {
  return themed(`line-${index % LINE_COLOURS}`);
}

/** A colour of the style sheet. */
export function themed(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function channel(stop: number, c: number): number {
  return parseInt(VIRIDIS.slice(6 * stop + 2 * c, 6 * stop + 2 * c + 2), 16);
}

/** viridis at t in [0, 1] as red, green, blue. */
export function viridis(t: number): [number, number, number] {
  const at = Math.min(1, Math.max(0, t)) * 16;
  const stop = Math.min(15, Math.floor(at));
  const mix = (c: number) => Math.round(channel(stop, c) + (at - stop) * (channel(stop + 1, c) - channel(stop, c)));
  return [mix(0), mix(1), mix(2)];
}

export function viridisCss(t: number): string {
  return `rgb(${viridis(t).join(" ")})`;
}

/** viridis without the end that vanishes on the page. */
export function pathCss(t: number): string {
  return viridisCss(dark() ? 0.25 + 0.75 * t : 0.9 * t);
}

/** "#rrggbb" as a pixel, in the byte order of canvas data (little-endian machines, which all browsers run on). */
export function pixel(red: number, green: number, blue: number): number {
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

export function hexPixel(hex: string): number {
  const value = parseInt(hex.slice(1), 16);
  return pixel(value >> 16, (value >> 8) & 255, value & 255);
}
