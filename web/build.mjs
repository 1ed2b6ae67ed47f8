// Builds the page into the Python package; with --check it says instead whether the package holds what would be built.
import { readFile, writeFile } from "node:fs/promises";
import { build } from "esbuild";

const HERE = new URL(".", import.meta.url).pathname;
const PAGES = new URL("../h2kbus/pages/", import.meta.url).pathname;

const built = await build({
  absWorkingDir: HERE,
  entryPoints: { app: "src/main.tsx" },
  outdir: PAGES,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  jsx: "automatic",
  jsxImportSource: "preact",
  charset: "utf8",
  legalComments: "none",
  metafile: true,
  write: false,
});
const files = Object.fromEntries(built.outputFiles.map((each) => [each.path.slice(PAGES.length), each.contents]));
for (const name of ["index.html", "icon.svg"]) {
  files[name] = await readFile(`${HERE}static/${name}`);
}
files["licences.txt"] = Buffer.from(await licences());

/** Of the packages whose code is in the bundle: their licences want to be passed on. */
async function licences() {
  const places = Object.keys(built.metafile.inputs).map((each) => /^node_modules\/(?:@[^/]+\/)?[^/]+/.exec(each)?.[0]);
  const texts = [...new Set(places.filter(Boolean))].sort().map(async (place) => {
    const { name, version, license } = JSON.parse(await readFile(`${HERE}${place}/package.json`));
    const text = await readFile(`${HERE}${place}/LICENSE`, "utf8");
    return `${name} ${version} (${license})\n\n${text.trim()}\n`;
  });
  return (await Promise.all(texts)).join(`\n${"-".repeat(80)}\n\n`);
}

for (const [name, content] of Object.entries(files)) {
  if (!process.argv.includes("--check")) {
    await writeFile(PAGES + name, content);
    continue;
  }
  const held = await readFile(PAGES + name).catch(() => Buffer.alloc(0));
  if (!held.equals(content)) {
    console.error(`h2kbus/pages/${name} is not what web/ builds: run \`make web\` and commit it`);
    process.exitCode = 1;
  }
}
