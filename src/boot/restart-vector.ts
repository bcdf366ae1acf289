import type { GuestMemory } from '../memory/guest-memory.js';
import { ACPI_POWER } from './acpi.js';

/** Where a PC's firmware begins to run, in real mode, when software jumps to ffff:0000 to restart the machine. */
const RESTART_VECTOR_GPA = 0xffff0;

/**
 * Writes what a machine without firmware has at the restart vector: code that asks for a reset by the ACPI register.
 *
 * Linux ends there when it reboots: where ACPI is of the hardware-reduced kind it takes it for granted that EFI can
 * reset the machine, and its next best is the firmware's vector. On empty memory it would run on for ever.
 */
export function writeRestartVector(memory: GuestMemory): void {
  const port = ACPI_POWER.BASE_PORT + ACPI_POWER.RESET_OFFSET;
  const MOV_DX = [0xba, port & 0xff, port >> 8];
  const MOV_AL = [0xb0, ACPI_POWER.RESET_VALUE];
  const OUT_DX_AL = 0xee;
  const HLT_FOR_EVER = [0xf4, 0xeb, 0xfd];
  memory.write(RESTART_VECTOR_GPA, Uint8Array.of(...MOV_DX, ...MOV_AL, OUT_DX_AL, ...HLT_FOR_EVER));
}
