/* A plugin in C, against the generated header: answers its prompt `hello`, and greets whoever sends TEXT.
 *
 * Build: cc -std=c11 -shared -fPIC -I plugin-sdk/include plugins/hello-c/hello.c -o libhello.so
 *
 * It needs no MessagePack library: host->field reads values out of bodies, and what it sends is short enough to be
 * written by hand. Every length is checked before it is used; nothing is allocated. */
#include "thenodes_plugin.h"

#include <stdio.h>
#include <string.h>

static ThenodesHostTable host;

static ThenodesBytes bytes(const char *text) {
    ThenodesBytes b = {(const uint8_t *)text, strlen(text)};
    return b;
}

static int is(ThenodesBytes b, const char *text) { return b.len == strlen(text) && memcmp(b.ptr, text, b.len) == 0; }

/* Appends a MessagePack string; at most 65535 bytes, and only if it fits. */
static size_t put_string(uint8_t *out, size_t at, size_t room, const uint8_t *text, size_t len) {
    if (len > 65535 || at + 3 + len > room) return at;
    out[at] = 0xda;
    out[at + 1] = (uint8_t)(len >> 8);
    out[at + 2] = (uint8_t)len;
    memcpy(out + at + 3, text, len);
    return at + 3 + len;
}

static void reply(uint64_t id, const char *code, ThenodesBytes body) {
    ThenodesFrameView frame = {.size = sizeof frame, .kind = THENODES_KIND_REPLY, .id = id, .code = bytes(code), .body = body};
    host.send(host.context, &frame);
}

static void reply_nothing(uint64_t id) {
    static const uint8_t nil = 0xc0;
    ThenodesBytes body = {&nil, 1};
    reply(id, "", body);
}

static void on_prompt(uint64_t id, ThenodesBytes body) {
    ThenodesBytes input;
    if (host.field(body, bytes("input"), &input) != THENODES_OK) {
        reply(id, "INVALID_INPUT", bytes("no input"));
        return;
    }
    char text[300];
    int shown = input.len > 200 ? 200 : (int)input.len;
    int len = snprintf(text, sizeof text, "hello %.*s, this is C", shown, (const char *)input.ptr);
    uint8_t out[400];
    size_t used = put_string(out, 0, sizeof out, (const uint8_t *)text, (size_t)len);
    ThenodesBytes answer = {out, used};
    reply(id, "", answer);
}

static void on_message(uint64_t id, ThenodesBytes body) {
    ThenodesBytes from, said;
    if (host.field(body, bytes("from"), &from) == THENODES_OK && host.field(body, bytes("msg_type.TEXT"), &said) == THENODES_OK) {
        printf("%.*s said %.*s\n", (int)from.len, (const char *)from.ptr, (int)said.len, (const char *)said.ptr);
        fflush(stdout);
        /* {"text": "{...}"} for peers.broadcast; the node checks the message and puts its own id into `from`. */
        static const char text[] =
            "{\"from\":\"-\",\"to\":\"*\",\"msg_type\":{\"EXTENSION\":{\"kind\":\"hello.c\"}},\"payload\":null,\"realm\":null}";
        uint8_t out[300] = {0x81, 0xa4, 't', 'e', 'x', 't'};
        size_t used = put_string(out, 6, sizeof out, (const uint8_t *)text, sizeof text - 1);
        ThenodesFrameView call = {.size = sizeof call, .kind = THENODES_KIND_CALL, .cause = id, .method = bytes("peers.broadcast")};
        call.id = host.next_id(host.context);
        call.body.ptr = out;
        call.body.len = used;
        host.send(host.context, &call);
    }
    reply_nothing(id);
}

static int32_t receive(void *instance, const ThenodesFrameView *frame) {
    (void)instance;
    if (frame->size < sizeof *frame) return THENODES_INVALID;
    if (frame->kind != THENODES_KIND_CALL) return THENODES_OK; /* replies, notices, cancels: nothing to do */
    if (is(frame->method, "prompt")) {
        on_prompt(frame->id, frame->body);
    } else if (is(frame->method, "message")) {
        on_message(frame->id, frame->body);
    } else if (is(frame->method, "load") || is(frame->method, "stop")) {
        reply_nothing(frame->id);
    } else {
        reply(frame->id, "UNHANDLED", bytes("hello.c has no such method"));
    }
    return THENODES_OK;
}

static int32_t describe(void *instance, ThenodesDescription *out) {
    (void)instance;
    if (out->size < sizeof *out) return THENODES_INVALID;
    out->id = bytes("hello");
    out->sdk = bytes("C, by hand");
    out->prompts = bytes("hello");
    return THENODES_OK;
}

static int32_t start(void *instance, const ThenodesHostTable *table) {
    (void)instance;
    if (table->abi_version != THENODES_ABI_VERSION || table->size < sizeof host) return THENODES_WRONG_VERSION;
    host = *table;
    return THENODES_OK;
}

void register_plugin(const ThenodesRegistrarApi *api) {
    static ThenodesPluginTable table = {
        .size = sizeof table,
        .abi_version = THENODES_ABI_VERSION,
        .describe = describe,
        .start = start,
        .receive = receive,
    };
    if (api == NULL || api->abi_version != THENODES_ABI_VERSION || api->register_handler == NULL) {
        fputs("hello: this runner has another ABI version\n", stderr);
        return;
    }
    if (api->register_handler(api->host_context, &table) != THENODES_OK) fputs("hello: refused\n", stderr);
}
