import type { Session } from '../benchmark.js';
import type { Load } from '../linux.js';
import { measureRequests } from './requests.js';

/** A guest for several contenders: started for the first, ended with the last. */
export class SharedLoad {
  readonly #start: () => Promise<Load>;
  #load: Promise<Load> | undefined;
  #users = 0;

  constructor(start: () => Promise<Load>) {
    this.#start = start;
  }

  /** One load in it, which has been run once: for caches and compilers. @param images Go with the session. */
  async session(line: string, images: AsyncDisposable): Promise<Session> {
    this.#load ??= this.#start();
    const load = await this.#load;
    this.#users++;
    await load.run(line);
    return {
      round: async () => [await measureRequests(load, line)],
      [Symbol.asyncDispose]: async () => {
        if (--this.#users === 0) {
          this.#load = undefined;
          await load[Symbol.asyncDispose]();
        }
        await images[Symbol.asyncDispose]();
      },
    };
  }
}
