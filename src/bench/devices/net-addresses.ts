/** The network of the guests of devices/net: of no host, for it is in a namespace of its own. */
export const HOST_ADDRESS = '10.77.0.1';
export const GUEST_ADDRESS = '10.77.0.2';
export const PORT = 7777;
