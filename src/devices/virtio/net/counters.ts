/** Why a frame of the guest was not sent. */
export type TransmitDrop =
  | 'bad header' // no whole virtio_net_hdr, or one that asks for what was not agreed on
  | 'too short' // less than an Ethernet header
  | 'too long' // more than 65,550 bytes, or than the MTU allows
  | 'link down'
  | 'refused'; // by the backend

/** Why a frame for the guest was not delivered. */
export type ReceiveDrop =
  | 'bad header' // it asks for what the driver did not agree to
  | 'too short'
  | 'too long'
  | 'link down'
  | 'no driver' // that set the device up
  | 'no room' // the queue of waiting frames is full
  | 'buffers too small'; // even all of the driver's together

export interface DirectionCounters<Drop extends string> {
  frames: number;
  /** Of the frames, without their virtio headers. */
  bytes: number;
  dropped: Partial<Record<Drop, number>>;
}

/** What went through a network device since it was made; resets of the device do not clear it. */
export interface NetCounters {
  transmitted: DirectionCounters<TransmitDrop>;
  received: DirectionCounters<ReceiveDrop>;
}

export class DirectionCount<Drop extends string> {
  frames = 0;
  bytes = 0;
  readonly #dropped = new Map<Drop, number>();

  add(bytes: number): void {
    this.frames++;
    this.bytes += bytes;
  }

  drop(reason: Drop): void {
    this.#dropped.set(reason, (this.#dropped.get(reason) ?? 0) + 1);
  }

  get counters(): DirectionCounters<Drop> {
    const dropped = Object.fromEntries(this.#dropped) as Partial<Record<Drop, number>>;
    return { frames: this.frames, bytes: this.bytes, dropped };
  }
}
