// Light or dark: what the system prefers, unless the reader has chosen; paper is light.

type Theme = "light" | "dark";
const KEY = "dynaxx-theme";
const system = matchMedia("(prefers-color-scheme: dark)");
const listeners: (() => void)[] = [];
let chosen: Theme | null = null;
let printing = false;

export function dark(): boolean {
  return document.documentElement.dataset.theme === "dark";
}

/** Calls back whenever colours change. */
export function onTheme(listener: () => void): void {
  listeners.push(listener);
}

function apply(): void {
  const preferred = chosen ?? (system.matches ? "dark" : "light");
  document.documentElement.dataset.theme = printing ? "light" : preferred;
  for (const listener of listeners) listener();
}

export function startTheme(): void {
  // Storage is refused to some pages opened from disk; a choice then lasts as long as the page.
  try {
    const before = localStorage.getItem(KEY);
    if (before === "light" || before === "dark") chosen = before;
  } catch {}
  const print = (now: boolean) => () => {
    printing = now;
    apply();
  };
  addEventListener("beforeprint", print(true));
  addEventListener("afterprint", print(false));
  system.addEventListener("change", apply);
  apply();
}

export function toggleTheme(): void {
  chosen = dark() ? "light" : "dark";
  try {
    localStorage.setItem(KEY, chosen);
  } catch {}
  apply();
}
