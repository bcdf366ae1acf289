import { VmmError } from '../../../errors.js';
import { MAX_PORT } from './defs.js';

/** @throws VmmError code "INVALID_ARGUMENT" */
export function checkPort(port: number): void {
  if (!(Number.isInteger(port) && port >= 0 && port <= MAX_PORT)) {
    throw new VmmError('INVALID_ARGUMENT', `${port} is no vsock port; give 0 to ${MAX_PORT}`);
  }
}
