import { styleText } from 'node:util';

type Style = Parameters<typeof styleText>[0];

/** Text in a colour where the stream is a terminal that shows colours, else as it is. */
export function paint(stream: NodeJS.WriteStream, style: Style, text: string): string {
  const wanted = process.env['FORCE_COLOR'] ? process.env['FORCE_COLOR'] !== '0' : stream.isTTY;
  return wanted && !process.env['NO_COLOR'] && process.env['TERM'] !== 'dumb' ? styleText(style, text) : text;
}

/** A word to the person at the terminal. stdout is the guest's alone. */
export function say(text: string): void {
  process.stderr.write(`${paint(process.stderr, 'dim', 'vmexit:')} ${text}\n`);
}

export function complain(text: string): void {
  process.stderr.write(`${paint(process.stderr, 'red', 'vmexit:')} ${text}\n`);
}

/** 12.3 MiB and the like. */
export function formatBytes(bytes: number): string {
  const units = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB'];
  const unit = Math.min(Math.floor(Math.log2(Math.max(bytes, 1)) / 10), units.length - 1);
  const value = bytes / 1024 ** unit;
  return `${Number.isInteger(value) ? value : value.toFixed(1)} ${units[unit]}`;
}

export function formatCount(count: number): string {
  return count.toLocaleString('en');
}

export function formatSeconds(ms: number): string {
  return `${(ms / 1000).toFixed(2)} s`;
}
