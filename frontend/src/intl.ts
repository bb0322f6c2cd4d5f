// Must be imported before uPlot, which formats numbers for `navigator.language` as it loads: in containers that is
// "en-US@posix", which Intl refuses.
try {
  new Intl.NumberFormat(navigator.language);
} catch {
  Object.defineProperty(navigator, "language", { value: "en-US", configurable: true });
}

export {};
