import type { Duplex } from 'node:stream';

/** Lets each stream carry on what the other says: bytes, the end of a direction, errors, and the end of it all. */
export function joinStreams(a: Duplex, b: Duplex): void {
  for (const [from, to] of [
    [a, b],
    [b, a],
  ]) {
    from.pipe(to);
    from.once('error', (error) => to.destroy(error));
    from.once('close', () => {
      // Nobody is left to read what `to` still says; what it was given before should arrive.
      if (!from.readableEnded || to.writableFinished) to.destroy();
      else to.once('finish', () => to.destroy());
    });
  }
}
