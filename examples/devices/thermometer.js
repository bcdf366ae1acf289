/* global setInterval, clearInterval */
/**
 * A thermometer with an alarm, two registers of a byte each:
 *
 * 0  read: the temperature in °C, signed
 * 1  write: above how many °C, signed, the interrupt line goes up; read: the same
 *
 * The program sets the temperature: `config.celsius` is shared memory, one Int8.
 */
export default class Thermometer {
  name = 'thermometer';
  #celsius;
  #irq;
  #limit = 127;
  #sampling;

  constructor({ celsius }, { irq }) {
    this.#celsius = new Int8Array(celsius);
    this.#irq = irq;
  }

  read(offset) {
    return (offset === 0 ? this.#celsius[0] : this.#limit) & 0xff;
  }

  write(offset, _size, value) {
    if (offset !== 1) return;
    this.#limit = (value << 24) >> 24;
    this.#sampling ??= setInterval(() => this.#sample(), 10);
  }

  reset() {
    clearInterval(this.#sampling);
    this.#sampling = undefined;
    this.#limit = 127;
    this.#irq.set(false);
  }

  #sample() {
    this.#irq.set(this.#celsius[0] > this.#limit);
  }
}
