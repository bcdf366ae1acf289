/** The start of a reply, of which more may be in the request's buffers already. */
export interface FileServerReply {
  head: Uint8Array;
  /** How many bytes of the reply's buffers, behind where the head goes, belong to it too. */
  dataBytes: number;
}

/**
 * What stands behind a 9P device: a server of the protocol, for one client.
 *
 * Any number of requests may be under way at once; their replies may overtake each other.
 */
export interface FileServer {
  /**
   * Serves one request. Never rejects: what fails is answered by an error of the protocol.
   *
   * @param request Borrowed guest memory, at least 7 bytes: a message. The client may change it meanwhile.
   * @param reply Borrowed guest memory, at least 11 bytes, which the server may write to until the promise resolves.
   */
  serve(request: readonly Uint8Array[], reply: readonly Uint8Array[]): Promise<FileServerReply>;
  /** Forgets the client and all that it had open. */
  reset(): void;
  /** What `restore` needs to go on with this client: plain data. Called with no request under way. */
  save(): unknown;
  /** @throws VmmError code "INVALID_ARGUMENT" */
  restore(state: unknown): void;
  /** Forgets the client, and everything else. Closing again does nothing. */
  close(): Promise<void>;
}
