// Numbers as people write them.

/** Without the zeros at the end of its decimals; those of an exponent stay. */
function trimmed(text: string): string {
  return text.replace(/(\.\d*?)0+(?=e|$)/, "$1").replace(/\.(?=e|$)/, "");
}

/** A value with a few significant digits. */
export function num(value: number, digits = 4): string {
  if (!Number.isFinite(value)) return String(value);
  if (value === 0) return "0";
  if (Number.isInteger(value) && Math.abs(value) < 1e5) return String(value);
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return trimmed(value.toExponential(digits - 1)).replace("e+", "e");
  return trimmed(value.toFixed(Math.max(0, digits - 1 - Math.floor(Math.log10(size)))));
}

/** Decimals that a multiple of `step` needs: 2 for 0.25. */
function decimals(step: number): number {
  for (let d = 0; d < 8; d++) {
    const scaled = step * 10 ** d;
    if (Math.abs(scaled - Math.round(scaled)) < 1e-6 * Math.max(1, scaled)) return d;
  }
  return 8;
}

/** A step, in full. */
export function where(step: number): string {
  return String(Math.round(step));
}

/** The label of a tick; `step` is the distance to the next one. */
export function tick(value: number, step: number): string {
  const size = Math.abs(value);
  if (size < step * 1e-6) return "0";
  if (size >= 1e4 && size < 1e6 && step >= 100) return `${trimmed((value / 1e3).toFixed(1))}k`;
  if (size >= 1e6 || size < 1e-3) {
    const digits = Math.max(0, Math.floor(Math.log10(size)) - Math.floor(Math.log10(step)));
    return trimmed(value.toExponential(Math.min(digits, 6))).replace("e+", "e");
  }
  return trimmed(value.toFixed(decimals(step)));
}

/** A long name by its end, which tells layers apart. */
export function short(name: string, most = 30): string {
  return name.length <= most ? name : `…${name.slice(name.length - most + 1)}`;
}
