import type { Duplex } from 'node:stream';

/** The guest wants to connect to a port of the host. To be answered once, now or later. */
export interface VsockRequest {
  /** Of the host, and of the guest. */
  readonly port: number;
  readonly guestPort: number;
  /** The guest may have given up in the meantime; then the stream is destroyed. */
  accept(): Duplex;
  reject(): void;
}

/** Takes a request of the guest, or returns false where it is for somebody else. */
export type VsockAcceptor = (request: VsockRequest) => boolean;
