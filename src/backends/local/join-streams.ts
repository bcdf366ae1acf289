import type { Duplex } from 'node:stream';

/** Lets each stream carry on what the other says: bytes, the end of a direction, errors, and the end of it all. */
export function joinStreams(a: Duplex, b: Duplex): void {
  carry(a, b);
  carry(b, a);
}

function carry(from: Duplex, to: Duplex): void {
  const onClose = () => {
    // Nobody is left to read what `to` still says; what it was given before should arrive.
    if (!from.readableEnded || to.writableFinished) to.destroy(from.errored ?? undefined);
    else to.once('finish', () => to.destroy());
  };
  // Its error is known by its close; without a listener it would end the program.
  from.on('error', () => {});
  from.pipe(to);
  if (from.closed) onClose();
  else from.once('close', onClose);
}
