import { renderScreen, type Run, type Style } from './screen.js';

/** Pixels. */
const FONT_SIZE = 13;
/** Of one character; the text is stretched to it, whatever fixed-width font the reader has. */
const CHAR_WIDTH = 7.8;
const LINE_HEIGHT = 19;
const PADDING = 18;
const BAR_HEIGHT = 34;

/** The sixteen colours, on a light and on a dark ground: every one with a contrast of at least 4.5 to 1. */
const LIGHT = {
  ground: '#fbfbfa',
  bar: '#ecebe8',
  edge: '#d4d2cd',
  text: '#24292f',
  dim: '#6a6f76',
  colors: ['#24292f', '#b3261e', '#1a7f37', '#8a5a00', '#0b5bd3', '#8a3ffc', '#0e7490', '#57606a'],
};
const DARK = {
  ground: '#16191f',
  bar: '#22262e',
  edge: '#333944',
  text: '#dde3ea',
  dim: '#8f98a5',
  colors: ['#8f98a5', '#ff7b72', '#56d364', '#e3b341', '#79b8ff', '#d2a8ff', '#56d4dd', '#dde3ea'],
};

/** An SVG picture of a terminal window that shows this text; `title` is for those who hear pictures. */
export function drawTerminal(text: string, { columns, title }: { columns: number; title: string }): string {
  const lines = renderScreen(text, columns);
  const used = Math.max(...lines.flat().map((run) => run.column + [...run.text].length), 40);
  const width = Math.ceil(used * CHAR_WIDTH + 2 * PADDING);
  const height = BAR_HEIGHT + lines.length * LINE_HEIGHT + 2 * PADDING;
  const buttons = [0, 1, 2].map((i) => `<circle class="button" cx="${PADDING + 6 + i * 20}" cy="17" r="6"/>`).join('');
  const body = lines.flatMap((runs, row) => runs.map((run) => drawRun(run, row))).join('\n');
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img">
<title>${escape(title)}</title>
<style>
${css(LIGHT)}
@media (prefers-color-scheme: dark) {
${css(DARK)}
}
text { font: ${FONT_SIZE}px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace; }
.bold { font-weight: 600; }
.italic { font-style: italic; }
.underline { text-decoration: underline; }
</style>
<rect class="window" x="0.5" y="0.5" width="${width - 1}" height="${height - 1}" rx="9"/>
<path class="bar" d="M1 ${BAR_HEIGHT}V9.5A8.5 8.5 0 0 1 9.5 1H${width - 9.5}A8.5 8.5 0 0 1 ${width - 1} 9.5V${BAR_HEIGHT}Z"/>
${buttons}
${body}
</svg>
`;
}

function css(theme: typeof LIGHT): string {
  return [
    `.window { fill: ${theme.ground}; stroke: ${theme.edge}; }`,
    `.bar { fill: ${theme.bar}; }`,
    `.button { fill: ${theme.edge}; }`,
    `text { fill: ${theme.text}; }`,
    `.dim { fill: ${theme.dim}; }`,
    ...theme.colors.map((color, i) => `.c${i} { fill: ${color}; }`),
  ].join('\n');
}

function drawRun({ column, text, style }: Run, row: number): string {
  const x = round(PADDING + column * CHAR_WIDTH);
  const y = BAR_HEIGHT + PADDING + row * LINE_HEIGHT + FONT_SIZE;
  const length = round([...text].length * CHAR_WIDTH);
  return `<text x="${x}" y="${y}" textLength="${length}"${classes(style)}>${escape(text)}</text>`;
}

function classes({ bold, dim, italic, underline, color }: Style): string {
  const names = [
    // A bright colour is drawn as its plain sister: both are readable.
    color === undefined ? dim && 'dim' : `c${color % 8}`,
    bold && 'bold',
    italic && 'italic',
    underline && 'underline',
  ].filter(Boolean);
  return names.length > 0 ? ` class="${names.join(' ')}"` : '';
}

const round = (value: number) => Number(value.toFixed(1));

const escape = (text: string) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
