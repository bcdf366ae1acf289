import type { Writable } from 'node:stream';

/** Ctrl-], as telnet has it. */
export const ESCAPE_KEY = 0x1d;

/**
 * Connects this terminal to a guest's console: every key goes to the guest, Ctrl-C too, until the escape key.
 *
 * @returns Gives the terminal back as it was. Idempotent; also called when the process exits for whatever reason.
 */
export function attachTerminal(terminal: NodeJS.ReadStream, guest: Writable, onEscape: () => void): () => void {
  const onKeys = (keys: Buffer) => {
    const at = keys.indexOf(ESCAPE_KEY);
    if (at !== 0) guest.write(at < 0 ? keys : keys.subarray(0, at));
    if (at >= 0) onEscape();
  };
  const restore = () => {
    process.off('exit', restore);
    terminal.off('data', onKeys);
    terminal.setRawMode(false);
    terminal.pause();
  };
  // Whatever ends this process, short of SIGKILL, passes here; signals are handled by whoever runs the guest.
  process.on('exit', restore);
  terminal.setRawMode(true);
  terminal.on('data', onKeys);
  terminal.resume();
  return restore;
}

/** End of file, typed on a line of its own. */
const EOF_KEY = 0x04;
/** What a terminal line may hold (N_TTY_BUF_SIZE less the newline); a longer one would be cut. */
const NEWLINE = 0x0a;

/**
 * Types a stream into a guest's terminal, and Ctrl-D at its end. The guest's terminal is line-based: control characters
 * in the input have their meaning there, and lines over 4,095 bytes are cut. For text, not for files of bytes.
 */
export async function typeStream(input: NodeJS.ReadableStream, guest: Writable): Promise<void> {
  let last = NEWLINE;
  for await (const chunk of input) {
    const bytes = typeof chunk === 'string' ? Buffer.from(chunk) : chunk;
    if (bytes.length === 0) continue;
    last = bytes[bytes.length - 1];
    await new Promise<void>((resolve) => guest.write(bytes, () => resolve()));
  }
  // In the middle of a line the first Ctrl-D only hands the line over.
  guest.write(Buffer.from(last === NEWLINE ? [EOF_KEY] : [EOF_KEY, EOF_KEY]));
}
