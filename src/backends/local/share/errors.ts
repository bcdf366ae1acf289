import { constants } from 'node:os';

/** errnos by name. They are Linux's, which are what the protocol wants. */
export const errno = constants.errno;

/** What a guest is told instead of what it asked for. */
export class Refusal extends Error {
  constructor(readonly errno: number) {
    super(`errno ${errno}`);
  }
}

/** The errno to answer with, whatever failed. */
export function errnoOf(error: unknown): number {
  if (error instanceof Refusal) return error.errno;
  // A VmmError and an error of the addon have the name in `errno`, one of Node.js in `code`.
  const { errno: name, code } = error as { errno?: unknown; code?: unknown };
  const known = errno as Readonly<Record<string, number | undefined>>;
  return known[String(name)] ?? known[String(code)] ?? errno.EIO;
}
