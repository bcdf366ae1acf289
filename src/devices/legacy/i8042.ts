/**
 * The keyboard controller: Intel 8042 as in the IBM PS/2 Technical Reference, "Keyboard and Auxiliary Device
 * Controller" (1988). Data register at offset 0 (port 0x60), status and command register at offset 4 (port 0x64): the
 * machine registers two ranges, because ports 0x61 to 0x63 belong to others.
 *
 * Nothing is plugged in. The controller says so as the chip does: a byte for the keyboard comes back at once as 0xfe
 * (resend) with the time-out flag, and there is no auxiliary port. Linux then needs neither of its time-outs, half a
 * second for a command and a fifth for a keyboard byte: its probe finds the controller, finds no mouse, hears at once
 * that no keyboard answers, and is done in about a millisecond. A status register stuck at "data ready" would end that
 * probe as quickly, but for ever hold up guests that drain the buffer without a limit. Tables that declare no 8042 (FADT,
 * IA-PC boot architecture flags) spare Linux even that; its reboot through 0xfe works all the same.
 */
import type { Snapshottable } from '../../bus/device.js';
import { SavedState } from '../../bus/saved-state.js';
import type { IrqLine } from '../../irq/irq-line.js';
import { IsaDevice } from './isa-device.js';

export const I8042_DATA_OFFSET = 0;
export const I8042_COMMAND_OFFSET = 4;

const STATUS_OUTPUT_FULL = 0x01;
const STATUS_SYSTEM = 0x04; // the self test passed
const STATUS_COMMAND = 0x08; // the last write went to the command register
const STATUS_UNLOCKED = 0x10;
const STATUS_AUX_DATA = 0x20;
const STATUS_TIMEOUT = 0x40;

const CONFIG_KEYBOARD_IRQ = 0x01;
const CONFIG_SYSTEM = 0x04;
const CONFIG_KEYBOARD_OFF = 0x10;
const CONFIG_AUX_OFF = 0x20;

const READ_CONFIG = 0x20;
const WRITE_CONFIG = 0x60;
const AUX_DISABLE = 0xa7;
const AUX_ENABLE = 0xa8;
const AUX_TEST = 0xa9;
const SELF_TEST = 0xaa;
const KEYBOARD_TEST = 0xab;
const KEYBOARD_DISABLE = 0xad;
const KEYBOARD_ENABLE = 0xae;
const READ_INPUT_PORT = 0xc0;
const READ_OUTPUT_PORT = 0xd0;
const WRITE_OUTPUT_PORT = 0xd1;
const ECHO_KEYBOARD = 0xd2;
const ECHO_AUX = 0xd3;
const WRITE_AUX = 0xd4;
const PULSE_MASK = 0xf0; // 0xf0 to 0xff pulse the output port's lines whose bit is 0

const OUTPUT_NOT_RESET = 0x01; // low: the processor is held in reset
const OUTPUT_A20 = 0x02;

const SELF_TEST_PASSED = 0x55;
const TEST_PASSED = 0x00;
const TEST_CLOCK_STUCK_LOW = 0x01;
const INPUT_PORT_IDLE = 0x80; // keyboard not locked
const RESEND = 0xfe;

/** Commands whose next data byte is a parameter. */
const WITH_PARAMETER: readonly number[] = [WRITE_CONFIG, WRITE_OUTPUT_PORT, ECHO_KEYBOARD, ECHO_AUX, WRITE_AUX];
const POWER_ON_CONFIG = CONFIG_SYSTEM | CONFIG_AUX_OFF;

export interface I8042Config {
  /** The keyboard interrupt, IRQ 1. */
  irq: IrqLine;
  /** The guest pulsed the processor's reset line. Called from inside its port write. */
  onReset: () => void;
}

export interface I8042State {
  config: number;
  /** The output buffer, and the status bits that describe it. */
  output: number;
  outputStatus: number;
  /** The command that waits for its parameter; 0 for none. */
  command: number;
  lastWriteWasCommand: boolean;
}

export class I8042 extends IsaDevice implements Snapshottable<I8042State> {
  readonly name = 'i8042';
  readonly #irq: IrqLine;
  readonly #onReset: () => void;
  #config = POWER_ON_CONFIG;
  #output = 0;
  #outputStatus = 0;
  #command = 0;
  #lastWriteWasCommand = false;

  constructor(config: I8042Config) {
    super();
    this.#irq = config.irq;
    this.#onReset = config.onReset;
  }

  protected readByte(offset: number): number {
    switch (offset) {
      case I8042_DATA_OFFSET:
        this.#outputStatus = 0;
        this.#irq.set(false);
        return this.#output;
      case I8042_COMMAND_OFFSET:
        return (
          this.#outputStatus |
          (this.#config & CONFIG_SYSTEM ? STATUS_SYSTEM : 0) |
          (this.#lastWriteWasCommand ? STATUS_COMMAND : 0) |
          STATUS_UNLOCKED
        );
      default:
        return 0xff;
    }
  }

  protected writeByte(offset: number, value: number): void {
    if (offset === I8042_COMMAND_OFFSET) {
      this.#lastWriteWasCommand = true;
      this.#startCommand(value);
    } else if (offset === I8042_DATA_OFFSET) {
      this.#lastWriteWasCommand = false;
      const command = this.#command;
      this.#command = 0;
      this.#takeData(command, value);
    }
  }

  reset(): void {
    this.#config = POWER_ON_CONFIG;
    this.#output = 0;
    this.#outputStatus = 0;
    this.#command = 0;
    this.#lastWriteWasCommand = false;
    this.#irq.set(false);
  }

  save(): I8042State {
    return {
      config: this.#config,
      output: this.#output,
      outputStatus: this.#outputStatus,
      command: this.#command,
      lastWriteWasCommand: this.#lastWriteWasCommand,
    };
  }

  restore(state: I8042State): void {
    const saved = new SavedState(this.name, state);
    const config = saved.integer('config', 0xff);
    const output = saved.integer('output', 0xff);
    const outputStatus = saved.integer('outputStatus', 0xff);
    const command = saved.integer('command', 0xff);
    this.#lastWriteWasCommand = saved.boolean('lastWriteWasCommand');
    this.#config = config;
    this.#output = output;
    this.#outputStatus = outputStatus & (STATUS_OUTPUT_FULL | STATUS_AUX_DATA | STATUS_TIMEOUT);
    this.#command = WITH_PARAMETER.includes(command) ? command : 0;
  }

  #startCommand(command: number): void {
    this.#command = WITH_PARAMETER.includes(command) ? command : 0;
    switch (command) {
      case READ_CONFIG:
        return this.#answer(this.#config);
      case AUX_DISABLE:
        this.#config |= CONFIG_AUX_OFF;
        return;
      case AUX_ENABLE:
        this.#config &= ~CONFIG_AUX_OFF;
        return;
      case AUX_TEST:
        return this.#answer(TEST_CLOCK_STUCK_LOW);
      case SELF_TEST:
        this.#config |= CONFIG_SYSTEM;
        return this.#answer(SELF_TEST_PASSED);
      case KEYBOARD_TEST:
        return this.#answer(TEST_PASSED);
      case KEYBOARD_DISABLE:
        this.#config |= CONFIG_KEYBOARD_OFF;
        return;
      case KEYBOARD_ENABLE:
        this.#config &= ~CONFIG_KEYBOARD_OFF;
        return;
      case READ_INPUT_PORT:
        return this.#answer(INPUT_PORT_IDLE);
      case READ_OUTPUT_PORT:
        return this.#answer(OUTPUT_NOT_RESET | OUTPUT_A20);
      default:
        if ((command & PULSE_MASK) === PULSE_MASK && !(command & OUTPUT_NOT_RESET)) this.#onReset();
    }
  }

  #takeData(command: number, value: number): void {
    switch (command) {
      case WRITE_CONFIG:
        this.#config = value;
        return;
      case WRITE_OUTPUT_PORT:
        if (!(value & OUTPUT_NOT_RESET)) this.#onReset();
        return; // A20 is always open
      case ECHO_KEYBOARD:
        return this.#fromKeyboard(value, 0);
      case ECHO_AUX:
        // Without STATUS_AUX_DATA: how a driver learns that there is no auxiliary port.
        return this.#answer(value);
      case WRITE_AUX:
        return this.#answer(RESEND, STATUS_AUX_DATA | STATUS_TIMEOUT);
      default:
        return this.#fromKeyboard(RESEND, STATUS_TIMEOUT);
    }
  }

  #answer(value: number, flags = 0): void {
    this.#output = value;
    this.#outputStatus = STATUS_OUTPUT_FULL | flags;
  }

  #fromKeyboard(value: number, flags: number): void {
    this.#answer(value, flags);
    if (!(this.#config & CONFIG_KEYBOARD_IRQ)) return;
    this.#irq.set(false); // an edge for every byte, also when the guest has not fetched the one before
    this.#irq.set(true);
  }
}
