/* The table between a TheNodes runner and a plugin library, ABI version 1.
 * Generated from ipc/src/abi.rs by `cargo xtask header`; do not edit.
 *
 * A plugin exports   void register_plugin(const ThenodesRegistrarApi *api);
 * checks api->abi_version, and calls api->register_handler with a ThenodesPluginTable.
 * docs/authoring.md and plugins/hello-c show how. */

#ifndef THENODES_PLUGIN_H
#define THENODES_PLUGIN_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/**
 * Version of this table. Also the `PLUGIN_ABI_VERSION` that plugin authors compare with.
 */
#define THENODES_ABI_VERSION 1

/**
 * A call with an answer.
 */
#define THENODES_KIND_CALL 1

/**
 * A call without an answer.
 */
#define THENODES_KIND_NOTIFY 2

/**
 * An answer.
 */
#define THENODES_KIND_REPLY 3

/**
 * The caller no longer waits.
 */
#define THENODES_KIND_CANCEL 4

/**
 * Success of a table function.
 */
#define THENODES_OK 0

/**
 * The frame is longer than the cap.
 */
#define THENODES_TOO_LONG -1

/**
 * The link has ended.
 */
#define THENODES_CLOSED -2

/**
 * A pointer, size or value of the caller is wrong.
 */
#define THENODES_INVALID -3

/**
 * The other side has another ABI version.
 */
#define THENODES_WRONG_VERSION -4

/**
 * A field that was asked for is not there.
 */
#define THENODES_ABSENT -5

/**
 * The library takes `messages`: several messages of peers in one call. Its body is a MessagePack array, with a length of two bytes,
 * of what `message` has as its body. Each has the number of the call plus its place in the array; an answer to one of these
 * numbers answers those before it too, which went well.
 */
#define FEATURE_MESSAGES 1

/**
 * Borrowed bytes. The pointer is valid only for the call it is passed to; null with length zero is empty.
 */
typedef struct ThenodesBytes {
  /**
   * First byte.
   */
  const uint8_t *ptr;
  /**
   * Number of bytes.
   */
  size_t len;
} ThenodesBytes;

/**
 * A frame, in either direction. Unused fields are zero or empty.
 */
typedef struct ThenodesFrameView {
  /**
   * Size of this struct as its writer knows it.
   */
  size_t size;
  /**
   * One of the `KIND_` values.
   */
  uint32_t kind;
  /**
   * Milliseconds left for a call; zero is the default.
   */
  uint32_t deadline_ms;
  /**
   * Number of the call, chosen by the caller.
   */
  uint64_t id;
  /**
   * Call of the other side that caused this one.
   */
  uint64_t cause;
  /**
   * Method of a call or notice.
   */
  struct ThenodesBytes method;
  /**
   * Error code of a reply; empty if it went well.
   */
  struct ThenodesBytes code;
  /**
   * Arguments, result, or error text.
   */
  struct ThenodesBytes body;
  /**
   * Toward the library: not zero if another whole frame has arrived and follows at once. Since 0.1.1; see `size`.
   */
  uint32_t more;
  /**
   * Zero.
   */
  uint32_t reserved;
} ThenodesFrameView;

/**
 * What the runner offers to a library, from `start` until the process ends.
 */
typedef struct ThenodesHostTable {
  /**
   * Size of this struct as the runner knows it.
   */
  size_t size;
  /**
   * [`ABI_VERSION`] of the runner.
   */
  uint32_t abi_version;
  /**
   * Zero.
   */
  uint32_t reserved;
  /**
   * Passed back to each function.
   */
  void *context;
  /**
   * Sends a frame. From any thread; blocks while the socket is full. [`OK`], [`TOO_LONG`], [`CLOSED`] or [`INVALID`].
   */
  int32_t (*send)(void *context, const struct ThenodesFrameView *frame);
  /**
   * A fresh id for a call of the plugin. Never zero.
   */
  uint64_t (*next_id)(void *context);
  /**
   * Finds the value at a dotted path (`payload.value`) in a MessagePack body; strings and byte strings come back as
   * their bytes, anything else as its MessagePack. For authors without a MessagePack library.
   */
  int32_t (*field)(struct ThenodesBytes body, struct ThenodesBytes path, struct ThenodesBytes *out);
  /**
   * Waits until frames have arrived and hands them to `receive`, on the calling thread. Only within `run`, and by one thread
   * at a time until it has handed them all over. Does not return when the node has closed the link: the process ends.
   * [`OK`] or [`INVALID`]. Since 0.1.1; see `size`.
   */
  int32_t (*pump)(void *context);
} ThenodesHostTable;

/**
 * What a library says about itself. Pointers stay valid until the next call into the library.
 */
typedef struct ThenodesDescription {
  /**
   * Size of this struct as the runner knows it.
   */
  size_t size;
  /**
   * Its name, UTF-8.
   */
  struct ThenodesBytes id;
  /**
   * What it was built with, UTF-8.
   */
  struct ThenodesBytes sdk;
  /**
   * Prompt prefixes, UTF-8, one per line.
   */
  struct ThenodesBytes prompts;
  /**
   * MessagePack array of configuration defaults, or empty.
   */
  struct ThenodesBytes config_defaults;
  /**
   * EXTENSION kinds it wants, UTF-8, one per line. Null: all. Not null and empty: none.
   */
  struct ThenodesBytes extension_kinds;
} ThenodesDescription;

/**
 * What a library hands over in `register_plugin`. Copied by the runner before the function returns.
 */
typedef struct ThenodesPluginTable {
  /**
   * Size of this struct as the library knows it.
   */
  size_t size;
  /**
   * [`ABI_VERSION`] of the library.
   */
  uint32_t abi_version;
  /**
   * Zero.
   */
  uint32_t reserved;
  /**
   * Passed back to each function.
   */
  void *instance;
  /**
   * Called once after `register_plugin` returned.
   */
  int32_t (*describe)(void *instance, struct ThenodesDescription *out);
  /**
   * Called once, before the first frame. The table stays valid until the process ends.
   */
  int32_t (*start)(void *instance, const struct ThenodesHostTable *host);
  /**
   * One frame from the node. Always from the same thread; must return soon, because the link waits meanwhile. Both are
   * different for a library that has `run`: then on whatever thread called `pump`.
   */
  int32_t (*receive)(void *instance, const struct ThenodesFrameView *frame);
  /**
   * May be null. Called once after `start`, on the process's first thread, in place of the runner's own reading: the library
   * reads with the host's `pump`. The process ends when it returns. Since 0.1.1; see `size`.
   */
  int32_t (*run)(void *instance);
  /**
   * What the library can do beside that: `FEATURE_` bits. Since 0.1.2; see `size`.
   */
  uint64_t features;
} ThenodesPluginTable;

/**
 * What `register_plugin` receives. The first three fields and the size are TheNodes' own since 0.1.
 */
typedef struct ThenodesRegistrarApi {
  /**
   * [`ABI_VERSION`] of the runner.
   */
  uint32_t abi_version;
  /**
   * Passed back to `register_handler`.
   */
  void *host_context;
  /**
   * Takes the plugin's table. [`OK`], [`WRONG_VERSION`] or [`INVALID`].
   */
  int32_t (*register_handler)(void *context, const struct ThenodesPluginTable *plugin);
  /**
   * `reserved[0]` is the size of this struct as the runner knows it; the rest is zero.
   */
  size_t reserved[4];
} ThenodesRegistrarApi;

#endif  /* THENODES_PLUGIN_H */
