/** Why a packet of the guest was answered by a reset. */
export type VsockFault =
  | 'short packet' // no whole header: there is nobody to answer
  | 'forged cid' // not from this guest to the host
  | 'unknown type' // no stream
  | 'wrong length' // of the payload, by header and by buffer
  | 'unexpected packet' // an operation that does not exist, or not in the connection's state
  | 'no connection' // of these ports
  | 'over credit' // more bytes than there was room for
  | 'refused' // by the host, where the guest wanted to connect
  | 'too many connections';

/** What went through a socket device since it was made; resets of the device do not clear it. */
export interface VsockCounters {
  /** Connections that exist, those that wait for an answer and those whose last bytes nobody has read among them. */
  connections: number;
  /** Connections that came about, by either side. */
  opened: number;
  /** Payload, in bytes. */
  bytesFromGuest: number;
  bytesToGuest: number;
  faults: Partial<Record<VsockFault, number>>;
  /** Resets that were never sent, because the guest fetched none. */
  droppedResets: number;
}
