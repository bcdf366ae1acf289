/**
 * Undoes, in place, xz's filter for x86 code: the absolute targets of CALL (E8) and JMP (E9) become relative again.
 *
 * Only an operand whose top byte is 00 or FF was converted. `mask` has a bit for each of the last bytes that looked like
 * an opcode, because an E8 or E9 inside such an operand makes the filter take another path.
 */
export function undoX86Filter(data: Uint8Array): void {
  const OPERAND_BYTES = 4;
  let mask = 0;
  let previous = -1; // of the last opcode
  const isSignByte = (byte: number) => byte === 0 || byte === 0xff;
  for (let at = 0; at + OPERAND_BYTES < data.length; at++) {
    if ((data[at] & 0xfe) !== 0xe8) continue;
    const gap = at - previous;
    previous = at;
    if (gap > 3) {
      mask = 0;
    } else {
      mask = (mask << (gap - 1)) & 7;
      if (mask !== 0 && (!MASK_ALLOWS[mask] || isSignByte(data[at + OPERAND_BYTES - MASK_BYTE[mask]]))) {
        mask = (mask << 1) | 1;
        continue;
      }
    }
    if (!isSignByte(data[at + OPERAND_BYTES])) {
      mask = (mask << 1) | 1;
      continue;
    }
    let operand = data[at + 1] | (data[at + 2] << 8) | (data[at + 3] << 16) | (data[at + 4] << 24);
    for (;;) {
      operand = (operand - (at + 1 + OPERAND_BYTES)) | 0;
      if (mask === 0) break;
      const shift = MASK_BYTE[mask] * 8;
      if (!isSignByte((operand >>> (24 - shift)) & 0xff)) break;
      operand ^= (1 << (32 - shift)) - 1;
    }
    // The top byte is the sign of a 25-bit number.
    const sign = operand & 0x1000000 ? 0xff : 0;
    data[at + 1] = operand;
    data[at + 2] = operand >> 8;
    data[at + 3] = operand >> 16;
    data[at + 4] = sign;
    at += OPERAND_BYTES;
  }
}

/** By mask: whether an operand there can have been converted. */
const MASK_ALLOWS = [true, true, true, false, true, false, false, false];
/** By mask: how many bytes before the end the older opcode's top byte is. */
const MASK_BYTE = [0, 1, 2, 2, 3, 3, 3, 3];
