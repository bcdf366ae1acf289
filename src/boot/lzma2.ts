/*
 * LZMA2: a sequence of chunks, each stored or LZMA-compressed, as in .xz files. The LZMA part follows the public LZMA
 * specification: a range decoder over adaptive bit models, literals and matches told apart by 12 states.
 *
 * The output is the dictionary: a match copies from what was written. Distances are checked against what there is since
 * the last dictionary reset; reads beyond a chunk's end give zeros and are found out when the chunk is over.
 */

const MODEL_BITS = 11;
const MODEL_INIT = 1 << (MODEL_BITS - 1);
const MOVE_BITS = 5;
const STATES = 12;
const POS_STATES_MAX = 16;
const LEN_LOW_SYMBOLS = 8;
const LEN_HIGH_BITS = 8;
const MATCH_MIN = 2;
const SLOT_BITS = 6;
const LEN_TO_SLOT_STATES = 4;
const ALIGN_BITS = 4;
const FIRST_SLOT_WITH_DIRECT_BITS = 14;
const LC_PLUS_LP_MAX = 4; // of LZMA2
const LITERAL_MODELS = 0x300;

// Offsets into one array of bit models.
const IS_MATCH = 0;
const IS_REP = IS_MATCH + STATES * POS_STATES_MAX;
const IS_REP_G0 = IS_REP + STATES;
const IS_REP_G1 = IS_REP_G0 + STATES;
const IS_REP_G2 = IS_REP_G1 + STATES;
const IS_REP0_LONG = IS_REP_G2 + STATES;
const POS_SLOT = IS_REP0_LONG + STATES * POS_STATES_MAX;
const POS_SPECIAL = POS_SLOT + (LEN_TO_SLOT_STATES << SLOT_BITS);
const POS_SPECIAL_MODELS = 128; // full distances 0 to 127
const ALIGN = POS_SPECIAL + POS_SPECIAL_MODELS;
const LEN = ALIGN + (1 << ALIGN_BITS);
// Of a length coder: two choices, 16 low trees and 16 middle trees of 3 bits, one high tree of 8 bits.
const LEN_LOW = 2;
const LEN_MID = LEN_LOW + POS_STATES_MAX * LEN_LOW_SYMBOLS;
const LEN_HIGH = LEN_MID + POS_STATES_MAX * LEN_LOW_SYMBOLS;
const LEN_MODELS = LEN_HIGH + (1 << LEN_HIGH_BITS);
const REP_LEN = LEN + LEN_MODELS;
const LITERAL = REP_LEN + LEN_MODELS;
const MODELS = LITERAL + (LITERAL_MODELS << LC_PLUS_LP_MAX);

export class Lzma2Decoder {
  readonly #input: Uint8Array;
  readonly #output: Uint8Array;
  readonly #models = new Uint16Array(MODELS);
  #position: number;
  #written = 0;
  /** Where the output's dictionary starts. */
  #dictionary = 0;
  #needs: 'dictionary' | 'properties' | 'nothing' = 'dictionary';

  // Range decoder.
  #range = 0;
  #code = 0;

  // LZMA state.
  #literalContextBits = 0;
  #literalPositionMask = 0;
  #positionMask = 0;
  #state = 0;
  #rep0 = 0;
  #rep1 = 0;
  #rep2 = 0;
  #rep3 = 0;

  /** @param position Of the first chunk in `input`. @param output Receives the data, from its start. */
  constructor(input: Uint8Array, position: number, output: Uint8Array) {
    this.#input = input;
    this.#position = position;
    this.#output = output;
  }

  /** Where in the input the next chunk starts; after the last one, what follows the LZMA2 data. */
  get position(): number {
    return this.#position;
  }

  /** Bytes written to the output. */
  get written(): number {
    return this.#written;
  }

  /**
   * Decodes one chunk: at most 2 MiB of output.
   *
   * @returns false when the end marker was read.
   * @throws RangeError when the data are damaged or the output is too small.
   */
  decodeChunk(): boolean {
    const input = this.#input;
    const at = this.#position;
    if (at >= input.length) throw new RangeError('LZMA2 data end early');
    const control = input[at];
    if (control === 0) {
      this.#position = at + 1;
      return false;
    }
    if (control >= 0x80) this.#decodeLzmaChunk(control, at);
    else this.#copyStoredChunk(control, at);
    return true;
  }

  #copyStoredChunk(control: number, at: number): void {
    if (control > 2) throw new RangeError('LZMA2 chunk is of an unknown kind');
    if (control === 1) this.#resetDictionary();
    else if (this.#needs === 'dictionary') throw new RangeError('LZMA2 data start without a dictionary');
    const size = ((this.#input[at + 1] << 8) | this.#input[at + 2]) + 1;
    const start = at + 3;
    if (start + size > this.#input.length) throw new RangeError('LZMA2 data end early');
    if (size > this.#output.length - this.#written) throw new RangeError('LZMA2 data are larger than they tell');
    this.#output.set(this.#input.subarray(start, start + size), this.#written);
    this.#written += size;
    this.#position = start + size;
  }

  #decodeLzmaChunk(control: number, at: number): void {
    const input = this.#input;
    const reset = (control >> 5) & 3; // 0 nothing, 1 state, 2 and new properties, 3 and dictionary
    const headerBytes = reset >= 2 ? 6 : 5;
    if (at + headerBytes > input.length) throw new RangeError('LZMA2 data end early');
    const outputBytes = (((control & 0x1f) << 16) | (input[at + 1] << 8) | input[at + 2]) + 1;
    const inputBytes = ((input[at + 3] << 8) | input[at + 4]) + 1;
    const start = at + headerBytes;
    if (start + inputBytes > input.length) throw new RangeError('LZMA2 data end early');
    if (outputBytes > this.#output.length - this.#written) throw new RangeError('LZMA2 data are larger than they tell');

    if (reset === 3) this.#resetDictionary();
    if (this.#needs === 'dictionary' || (this.#needs === 'properties' && reset < 2)) {
      throw new RangeError('LZMA2 chunk lacks a reset');
    }
    if (reset >= 2) this.#setProperties(input[at + 5]);
    if (reset >= 1) this.#resetState();

    if (inputBytes < 5 || input[start] !== 0) throw new RangeError('LZMA2 chunk is damaged');
    this.#range = 0xffffffff;
    this.#code =
      ((input[start + 1] << 24) | (input[start + 2] << 16) | (input[start + 3] << 8) | input[start + 4]) >>> 0;
    this.#position = start + 5;
    this.#decodeSymbols(this.#written + outputBytes);
    // A chunk ends exactly where its header says, with the range decoder at 0.
    if (this.#position !== start + inputBytes || this.#code !== 0) throw new RangeError('LZMA2 chunk is damaged');
  }

  #resetDictionary(): void {
    this.#dictionary = this.#written;
    this.#needs = 'properties';
  }

  #setProperties(properties: number): void {
    if (properties >= 9 * 5 * 5) throw new RangeError('LZMA2 properties are invalid');
    const lc = properties % 9;
    const lp = Math.floor(properties / 9) % 5;
    const pb = Math.floor(properties / 45);
    if (lc + lp > LC_PLUS_LP_MAX) throw new RangeError('LZMA2 properties are invalid');
    this.#literalContextBits = lc;
    this.#literalPositionMask = (1 << lp) - 1;
    this.#positionMask = (1 << pb) - 1;
    this.#needs = 'nothing';
  }

  #resetState(): void {
    this.#models.fill(MODEL_INIT);
    this.#state = 0;
    this.#rep0 = this.#rep1 = this.#rep2 = this.#rep3 = 0;
  }

  #decodeSymbols(end: number): void {
    const output = this.#output;
    while (this.#written < end) {
      const posState = (this.#written - this.#dictionary) & this.#positionMask;
      if (this.#bit(IS_MATCH + this.#state * POS_STATES_MAX + posState) === 0) {
        this.#literal();
        continue;
      }
      const length = this.#match(posState);
      if (length === 0) continue; // a short repeat, done
      const distance = this.#rep0 + 1;
      if (distance > this.#written - this.#dictionary) throw new RangeError('LZMA2 match before the dictionary');
      if (length > end - this.#written) throw new RangeError('LZMA2 match beyond its chunk');
      let to = this.#written;
      let from = to - distance;
      for (let left = length; left > 0; left--) output[to++] = output[from++]; // may overlap
      this.#written = to;
    }
    this.#normalize();
  }

  #literal(): void {
    const output = this.#output;
    const at = this.#written;
    const position = at - this.#dictionary;
    const previous = position === 0 ? 0 : output[at - 1];
    const lc = this.#literalContextBits;
    const context = ((position & this.#literalPositionMask) << lc) + (previous >> (8 - lc));
    const models = LITERAL + LITERAL_MODELS * context;
    let symbol = 1;
    if (this.#state >= 7) {
      // After a match: the byte that the last distance predicts selects the models, as long as it predicts right.
      let predicted = output[at - this.#rep0 - 1];
      let offset = 0x100;
      do {
        predicted <<= 1;
        const predictedBit = predicted & offset;
        if (this.#bit(models + offset + predictedBit + symbol)) {
          symbol = (symbol << 1) | 1;
          offset &= predictedBit;
        } else {
          symbol <<= 1;
          offset &= ~predictedBit;
        }
      } while (symbol < 0x100);
    } else {
      do symbol = (symbol << 1) | this.#bit(models + symbol);
      while (symbol < 0x100);
    }
    output[at] = symbol;
    this.#written = at + 1;
    this.#state = this.#state < 4 ? 0 : this.#state < 10 ? this.#state - 3 : this.#state - 6;
  }

  /** Decodes a match's distance into rep0. Returns its length, or 0 for a short repeat, which it copies itself. */
  #match(posState: number): number {
    const state = this.#state;
    if (this.#bit(IS_REP + state) === 0) {
      this.#rep3 = this.#rep2;
      this.#rep2 = this.#rep1;
      this.#rep1 = this.#rep0;
      this.#state = state < 7 ? 7 : 10;
      const length = this.#length(LEN, posState);
      this.#rep0 = this.#distance(length);
      return length;
    }
    if (this.#bit(IS_REP_G0 + state) === 0) {
      if (this.#bit(IS_REP0_LONG + state * POS_STATES_MAX + posState) === 0) {
        if (this.#rep0 >= this.#written - this.#dictionary) throw new RangeError('LZMA2 match before the dictionary');
        this.#state = state < 7 ? 9 : 11;
        this.#output[this.#written] = this.#output[this.#written - this.#rep0 - 1];
        this.#written++;
        return 0;
      }
    } else {
      let distance: number;
      if (this.#bit(IS_REP_G1 + state) === 0) {
        distance = this.#rep1;
      } else {
        if (this.#bit(IS_REP_G2 + state) === 0) {
          distance = this.#rep2;
        } else {
          distance = this.#rep3;
          this.#rep3 = this.#rep2;
        }
        this.#rep2 = this.#rep1;
      }
      this.#rep1 = this.#rep0;
      this.#rep0 = distance;
    }
    this.#state = state < 7 ? 8 : 11;
    return this.#length(REP_LEN, posState);
  }

  #length(coder: number, posState: number): number {
    if (this.#bit(coder) === 0) return MATCH_MIN + this.#tree(coder + LEN_LOW + posState * LEN_LOW_SYMBOLS, 3);
    if (this.#bit(coder + 1) === 0) {
      return MATCH_MIN + LEN_LOW_SYMBOLS + this.#tree(coder + LEN_MID + posState * LEN_LOW_SYMBOLS, 3);
    }
    return MATCH_MIN + 2 * LEN_LOW_SYMBOLS + this.#tree(coder + LEN_HIGH, LEN_HIGH_BITS);
  }

  #distance(length: number): number {
    const lengthState = Math.min(length - MATCH_MIN, LEN_TO_SLOT_STATES - 1);
    const slot = this.#tree(POS_SLOT + (lengthState << SLOT_BITS), SLOT_BITS);
    if (slot < 4) return slot;
    const bits = (slot >> 1) - 1;
    const base = ((2 | (slot & 1)) << bits) >>> 0;
    if (slot < FIRST_SLOT_WITH_DIRECT_BITS) return base + this.#reverseTree(POS_SPECIAL + base - slot, bits);
    const direct = this.#directBits(bits - ALIGN_BITS);
    return base + direct * (1 << ALIGN_BITS) + this.#reverseTree(ALIGN, ALIGN_BITS);
  }

  #tree(models: number, bits: number): number {
    let symbol = 1;
    for (let left = bits; left > 0; left--) symbol = (symbol << 1) | this.#bit(models + symbol);
    return symbol - (1 << bits);
  }

  #reverseTree(models: number, bits: number): number {
    let node = 1;
    let symbol = 0;
    for (let index = 0; index < bits; index++) {
      const bit = this.#bit(models + node);
      node = (node << 1) | bit;
      symbol |= bit << index;
    }
    return symbol;
  }

  #directBits(count: number): number {
    let value = 0;
    for (let left = count; left > 0; left--) {
      this.#normalize();
      this.#range >>>= 1;
      const bit = this.#code >= this.#range ? 1 : 0;
      if (bit) this.#code -= this.#range;
      value = value * 2 + bit;
    }
    return value;
  }

  #bit(model: number): number {
    this.#normalize();
    const models = this.#models;
    const probability = models[model];
    const bound = (this.#range >>> MODEL_BITS) * probability;
    if (this.#code < bound) {
      this.#range = bound;
      models[model] = probability + (((1 << MODEL_BITS) - probability) >> MOVE_BITS);
      return 0;
    }
    this.#range -= bound;
    this.#code -= bound;
    models[model] = probability - (probability >> MOVE_BITS);
    return 1;
  }

  #normalize(): void {
    if (this.#range < 0x1000000) {
      this.#range = (this.#range << 8) >>> 0;
      this.#code = ((this.#code << 8) | this.#input[this.#position++]) >>> 0;
    }
  }
}
