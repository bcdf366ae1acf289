import { Decoder, DecoderError, Formatter, FormatterSyntax } from 'iced-x86';

/**
 * Disassembles guest code for a crash report.
 *
 * @param code The bytes at `rip`.
 * @param bits The code segment's default: 16, 32 or 64.
 * @returns One instruction a line, with its address; what the bytes cut off is left out.
 */
export function disassemble(code: Uint8Array, rip: bigint, bits: 16 | 32 | 64): string[] {
  const decoder = new Decoder(bits, code, 0);
  const formatter = new Formatter(FormatterSyntax.Intel);
  const lines: string[] = [];
  try {
    decoder.ip = rip;
    while (decoder.canDecode) {
      const instruction = decoder.decode();
      try {
        // Truncated at the end of the bytes; an invalid opcode in their midst is what we are here to show.
        if (instruction.isInvalid && decoder.lastError === DecoderError.NoMoreBytes) break;
        const text = instruction.isInvalid ? '(invalid)' : formatter.format(instruction);
        lines.push(`${instruction.ip.toString(16).padStart(bits / 4, '0')}  ${text}`);
        if (instruction.isInvalid) break;
      } finally {
        instruction.free();
      }
    }
  } finally {
    formatter.free();
    decoder.free();
  }
  return lines;
}
