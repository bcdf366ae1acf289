/** An entropy device (virtio 1.2, 5.4) whose bytes are throws of a die: 1 to `config.sides`. */
import { randomInt } from 'node:crypto';
import { readConfigBytes, Turns } from 'vmexit/device';

export default class Dice {
  name = 'dice';
  type = 4;
  features = 0n;
  queueSizes = [16];
  #sides;
  #queue;
  #turns = new Turns(() => this.#queue?.drain((chain) => this.#fill(chain)) ?? false);

  constructor({ sides }) {
    this.#sides = sides;
  }

  readConfig(offset, size) {
    return readConfigBytes(new Uint8Array(0), offset, size);
  }

  writeConfig() {}

  activate({ queues }) {
    this.#queue = queues[0];
  }

  queueNotify() {
    this.#turns.take();
  }

  reset() {
    this.#queue = undefined;
    this.#turns.cancel();
  }

  save() {}

  restore() {}

  #fill(chain) {
    const length = Math.min(chain.writableBytes, 64);
    const throws = Uint8Array.from({ length }, () => randomInt(this.#sides) + 1);
    this.#queue.push(chain, chain.write(0, throws));
  }
}
