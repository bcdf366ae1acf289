/** Select Graphic Rendition (ECMA-48, 8.3.117): what this reads of it. */
export interface Style {
  bold: boolean;
  dim: boolean;
  italic: boolean;
  underline: boolean;
  /** 0 to 7, and 8 to 15 for the bright ones; undefined is the terminal's own. Inverse and backgrounds are not drawn. */
  color: number | undefined;
}

/** Words of one style with single spaces between them; `column` is where they start. */
export interface Run {
  column: number;
  text: string;
  style: Style;
}

interface Cell {
  char: string;
  style: Style;
}

const PLAIN: Style = { bold: false, dim: false, italic: false, underline: false, color: undefined };
const TAB_COLUMNS = 8;
// A control sequence (CSI, parameters, final byte), an operating-system command, or another escape; else one character.
// eslint-disable-next-line no-control-regex
const TOKEN = /\x1b\[([\x30-\x3f]*)[\x20-\x2f]*([\x40-\x7e])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[^[\]]|[^]/gu;

/**
 * What a terminal shows after it was sent this text, line by line.
 *
 * Understood are colours and text styles, carriage return, backspace, tab, newline and "erase in line"; other control
 * sequences do nothing. Every character takes one column.
 */
export function renderScreen(text: string, columns: number): Run[][] {
  const lines: Cell[][] = [[]];
  let style = PLAIN;
  let column = 0;
  const line = () => lines[lines.length - 1];
  const newline = () => {
    lines.push([]);
    column = 0;
  };
  const put = (char: string) => {
    if (column === columns) newline();
    while (line().length < column) line().push({ char: ' ', style: PLAIN });
    line()[column++] = { char, style };
  };

  for (const [token, parameters, final] of text.matchAll(TOKEN)) {
    if (final === 'm') style = applySgr(style, parameters);
    else if (final === 'K') line().length = parameters === '2' ? 0 : Math.min(line().length, column);
    else if (token === '\n') newline();
    else if (token === '\r') column = 0;
    else if (token === '\b') column = Math.max(0, column - 1);
    else if (token === '\t')
      do put(' ');
      while (column % TAB_COLUMNS !== 0 && column < columns);
    else if (token >= ' ' && token !== '\x7f') put(token);
  }
  return lines.map(runsOf);
}

function applySgr(style: Style, parameters: string): Style {
  const codes = parameters.split(';').map(Number);
  for (let i = 0; i < codes.length; i++) {
    const code = codes[i];
    if (code === 0) style = PLAIN;
    else if (code === 1) style = { ...style, bold: true };
    else if (code === 2) style = { ...style, dim: true };
    else if (code === 3) style = { ...style, italic: true };
    else if (code === 4) style = { ...style, underline: true };
    else if (code === 22) style = { ...style, bold: false, dim: false };
    else if (code === 23) style = { ...style, italic: false };
    else if (code === 24) style = { ...style, underline: false };
    else if (code >= 30 && code <= 37) style = { ...style, color: code - 30 };
    else if (code >= 90 && code <= 97) style = { ...style, color: code - 90 + 8 };
    else if (code === 39) style = { ...style, color: undefined };
    else if (code === 38 || code === 48) i += codes[i + 1] === 5 ? 2 : 4; // 256 and true colours: left as they were
  }
  return style;
}

function runsOf(cells: readonly Cell[]): Run[] {
  const runs: (Run & { end: number })[] = [];
  cells.forEach(({ char, style }, column) => {
    const last = runs.at(-1);
    const continues = last?.end === column && last.style === style;
    // Not everything that shows pictures keeps spaces in a row: they are left out, and a new run starts behind them.
    if (char === ' ' && (!continues || (cells[column + 1]?.char ?? ' ') === ' ')) return;
    if (continues) {
      last.text += char;
      last.end++;
    } else {
      runs.push({ column, text: char, style, end: column + 1 });
    }
  });
  return runs;
}
