export { VmmError } from './errors.js';
export type { VmmErrorCode } from './errors.js';
export { GuestMemory, heapGuestMemory } from './memory/guest-memory.js';
