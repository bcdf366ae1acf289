import { seededRandom } from '../random.js';

/** Numbers at which code tends to go wrong: the ends of every width, signs, page and queue boundaries. */
const EDGES = [0, 1, 2, 3, 15, 16, 0x7f, 0x80, 0xff, 0x100, 0xfff, 0x1000, 0x7fff, 0x8000, 0xffff, 0x10000] as const;
const EDGES_32 = [...EDGES, 0x7fffffff, 0x80000000, 0xfffff000, 0xffffffff] as const;
const EDGES_64 = [2n ** 32n, 2n ** 52n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 4096n, 2n ** 64n - 1n] as const;

/** What a fuzzer draws from: a seed gives the same draws again. */
export class FuzzRandom {
  readonly #below: (limit: number) => number;

  constructor(seed: number) {
    this.#below = seededRandom(seed);
  }

  /** 0 to limit - 1. */
  below(limit: number): number {
    return this.#below(limit);
  }

  chance(oneIn: number): boolean {
    return this.#below(oneIn) === 0;
  }

  pick<T>(from: readonly T[]): T {
    return from[this.#below(from.length)];
  }

  /** Small, at an edge, or anything in 32 bits. */
  u32(): number {
    const kind = this.#below(4);
    return kind === 0 ? this.#below(16) : kind < 3 ? this.pick(EDGES_32) : this.#below(2 ** 32);
  }

  u64(): bigint {
    const kind = this.#below(4);
    if (kind < 2) return BigInt(this.u32());
    return kind === 2 ? this.pick(EDGES_64) : (BigInt(this.u32()) << 32n) | BigInt(this.u32());
  }

  bytes(length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    for (let i = 0; i < length; i++) bytes[i] = this.#below(256);
    return bytes;
  }
}
