import { VmmError } from '../errors.js';

/**
 * Quotes one argument for a POSIX shell: it arrives at the command byte for byte.
 * @throws VmmError "INVALID_ARGUMENT" for a NUL, which no argument can hold.
 */
export function shellQuote(argument: string): string {
  if (argument.includes('\0')) throw new VmmError('INVALID_ARGUMENT', 'a command argument holds a NUL character');
  // Inside single quotes nothing is special but the quote itself.
  return `'${argument.replaceAll("'", `'\\''`)}'`;
}

/** A command line from an argument list. @throws VmmError as {@link shellQuote} does. */
export function shellCommand(command: readonly string[]): string {
  return command.map(shellQuote).join(' ');
}
