import type { VmmError } from '../../../errors.js';

/**
 * Work on frames that one side of a link leaves to the other: completing a checksum, cutting a large TCP (`tso`) or UDP
 * (`ufo`) packet into segments. `tso-ecn`: also for packets with the ECN bits set.
 */
export type NetOffload = 'checksum' | 'tso4' | 'tso6' | 'tso-ecn' | 'ufo';

/** What became of a frame: taken, no room now (`drained` follows), or not sendable, now or later. */
export type SendResult = 'sent' | 'busy' | 'refused';

/** What a backend calls: the device. Nothing here throws, and nothing may be called inside {@link NetBackend.connect}. */
export interface NetClient {
  /**
   * A frame for the guest.
   *
   * @param frame The pieces of an Ethernet frame without its FCS. Borrowed until the call returns.
   * @param header `struct virtio_net_hdr` of 12 bytes, little-endian, whose num_buffers means nothing; borrowed. None for
   *   a frame with complete checksums that fits the MTU.
   */
  receive(frame: readonly Uint8Array[], header?: Uint8Array): void;
  /** No more frames for now: the guest is told of those that {@link receive} took. Call after each batch. */
  receiveEnd(): void;
  /** There is room again, after a `busy`. Never called inside `send`. */
  drained(): void;
  /** The backend will carry nothing any more: the guest's link goes down. */
  failed(error: VmmError): void;
}

/** What stands behind a network device and carries its frames. */
export interface NetBackend {
  /** Short, for messages: `tap`, `user`. */
  readonly name: string;
  /** The guest's address, where the backend has a say; 6 bytes. */
  readonly mac?: Uint8Array | undefined;
  /** The largest packet it carries, in bytes, without the Ethernet header. */
  readonly mtu?: number | undefined;
  /** What it can do for frames of the guest, and leave undone in frames for it. Empty: headers are neither sent nor given. */
  readonly offloads: readonly NetOffload[];

  /** Names the one device it works for; called once, before anything else. */
  connect(client: NetClient): void;
  /** From now on frames for the guest may have just these things undone, a part of {@link offloads}; none until then. */
  setReceiveOffloads(offloads: readonly NetOffload[]): void;
  /**
   * A frame of the guest.
   *
   * @param frame Its pieces, at most 65,550 bytes in all. Borrowed guest memory: changes at any moment, gone when the call
   *   returns.
   * @param header As in {@link NetClient.receive}, checked against {@link offloads}. Borrowed.
   */
  send(frame: readonly Uint8Array[], header: Uint8Array): SendResult;
  /** No more frames for now: what {@link send} took goes out. */
  flush(): void;
  /** The device has no room: frames should wait where they are, or at their sender. A few more may still come. */
  pause(): void;
  resume(): void;
  /** Ends it, in any state, also twice. Resolves when nothing of it is left. */
  close(): Promise<void>;
}
