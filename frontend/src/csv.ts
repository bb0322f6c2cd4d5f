// Comma-separated values after RFC 4180.

export type Cell = string | number | null;

function cell(value: Cell): string {
  if (value === null) return "";
  const text = String(value);
  // A leading =, +, - or @ makes a spreadsheet run what a name says; numbers are safe.
  const guarded = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\n\r]/.test(guarded) ? `"${guarded.replaceAll('"', '""')}"` : guarded;
}

export function csv(header: Cell[], rows: Cell[][]): string {
  return [header, ...rows].map((row) => row.map(cell).join(",")).join("\n") + "\n";
}
