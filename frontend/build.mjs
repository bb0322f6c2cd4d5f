// Bundles src into ../src/dynaxx/report/static. The banner carries a hash of the sources; a test compares it, so that a
// committed bundle that was not built from the committed sources does not pass.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const out = "../src/dynaxx/report/static/";
const hash = createHash("sha256");
for (const name of ["package-lock.json", "build.mjs", ...readdirSync("src").sort().map((file) => `src/${file}`)]) {
  hash.update(`${name}\n`).update(readFileSync(name));
}
const sources = hash.digest("hex");

await build({
  entryPoints: { bundle: "src/main.ts" },
  outdir: out,
  bundle: true,
  minify: true,
  format: "iife",
  target: ["es2022"],
  charset: "ascii", // the page may be opened with any encoding
  legalComments: "none", // licences: THIRD_PARTY_LICENSES, written below
  banner: { js: `/* dynaxx report, sources ${sources}; contains uPlot (MIT), see THIRD_PARTY_LICENSES */` },
  logLevel: "info",
});

const licence = readFileSync("node_modules/uplot/LICENSE", "utf8");
const version = JSON.parse(readFileSync("node_modules/uplot/package.json", "utf8")).version;
writeFileSync(`${out}THIRD_PARTY_LICENSES`, `bundle.js and bundle.css contain uPlot ${version}:\n\n${licence.trim()}\n`);
