/* A fake libnvidia-ml.so.1: NVML's C interface, answered from a text file.
 *
 * It lets the unmodified pynvml binding, and every program built on it, meet machines that no
 * developer owns: eight cards, a card that falls off the bus, MIG, a driver that hangs.
 *
 * $BLIP_FAKE_NVML names the file; every call reads it anew, so a test changes the hardware by
 * replacing it. A line is "key value"; a card's keys begin with its index, a MIG instance's with
 * "<card>.mig<n>.". A value that is missing answers "Not Supported", as real boards do.
 *
 *   count 2                        cards on this machine
 *   driver 570.00.00-fake          the driver's version; ends in -fake so that nobody is misled
 *   error.<function> 9             the function fails with that nvmlReturn_t
 *   hang.<function> 5000           it blocks that many milliseconds, or until the line is gone
 *   0.name, 0.uuid, 0.bus_id       text
 *   0.memory_total, 0.memory_used, 0.memory_reserved                  bytes
 *   0.utilization 37               percent
 *   0.temperature, 0.memory_temperature                              degrees Celsius
 *   0.memory_temperature_error 15  that field's own nvmlReturn_t
 *   0.power_mw, 0.power_limit_mw, 0.energy_mj
 *   0.clock_mhz, 0.clock_max_mhz   of the SMs
 *   0.memory_clock_mhz, 0.memory_clock_max_mhz
 *   0.ecc_corrected, 0.ecc_uncorrected
 *   0.remapped 1:2:0:1             rows: correctable, uncorrectable, pending, failed
 *   0.fan 40                       percent
 *   0.display 1                    a display server has it open;  0.display_mode 1: it could be
 *   0.throttle 4                   the bits of nvmlClocksEventReason*
 *   0.compute_capability 9.0
 *   0.pcie_gen 5,  0.pcie_width 16           the best link;  0.pcie_gen_now, 0.pcie_width_now
 *   0.processes 41:1048576,42      compute processes, pid:bytes; without bytes: memory unknown
 *   0.graphics 7:1048576           the same for graphics
 *   0.process_utilization 41:30    percent of the SMs that each pid used, as of now; a third part
 *                                  is the entry's time in microseconds since 1970; empty: no entry
 *   0.xid 3:79                     an Xid event each time the number before the colon grows;
 *                                  3:31:1:0 names the MIG instance (GPU and compute instance)
 *   0.lost 1                       every call about this card says "GPU is lost"
 *   0.error.<function>, 0.hang.<function>    as above, for one card
 *   0.mig_mode 1,  0.mig0.uuid, 0.mig0.gi, 0.mig0.ci, 0.mig0.memory_total, ...
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define API __attribute__((visibility("default")))
#define CARDS 64
#define INSTANCES 8

typedef unsigned long long u64;
typedef int ret;
enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, TIMEOUT = 10, GPU_IS_LOST = 15, VERSION_MISMATCH = 25,
};

/* What an nvmlDevice_t points to: a card, or one MIG instance of it. */
typedef struct { unsigned index; char card[8], prefix[16]; int is_mig; } device;

/* The structures of nvml.h that cross the border, and their sizes there. */
typedef struct { u64 total, free, used; } memory_v1;
typedef struct { unsigned version; u64 total, reserved, free, used; } memory_v2;
typedef struct { unsigned gpu, memory; } utilization;
typedef struct { unsigned version; int sensor, celsius; } temperature_v1;
typedef struct { unsigned pid; u64 memory; unsigned gi, ci; } process;
typedef struct { unsigned pid; u64 time; unsigned sm, memory, encoder, decoder; } process_use;
typedef struct {
    unsigned id, scope;
    long long time, latency;
    int type;
    ret result;
    u64 value; /* a union in nvml.h; its first bytes are the number, whatever its type */
} field_value;
typedef struct { device *device; u64 type, data; unsigned gi, ci; } event;
typedef struct {
    char legacy_bus_id[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} pci_info;
_Static_assert(sizeof(memory_v1) == 24 && sizeof(memory_v2) == 40, "memory");
_Static_assert(sizeof(utilization) == 8 && sizeof(temperature_v1) == 12, "metrics");
_Static_assert(sizeof(process_use) == 32 && sizeof(field_value) == 40, "entries and fields");
_Static_assert(sizeof(process) == 24 && sizeof(event) == 32 && sizeof(pci_info) == 68, "others");

static device cards[CARDS], instances[CARDS][INSTANCES];
static int users; /* nvmlInit calls without their nvmlShutdown */

/* ---- the state file ---- */

static _Thread_local char state[1 << 16]; /* what it said when this thread's call began */

static void load(void) {
    const char *path = getenv("BLIP_FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    size_t size = file ? fread(state, 1, sizeof state - 1, file) : 0;
    state[size] = 0;
    if (file) fclose(file);
}

/* The text after "<prefix><key> ", up to the end of the line; NULL where there is none. */
static const char *find(const char *prefix, const char *key) {
    char wanted[160];
    size_t size = (size_t)snprintf(wanted, sizeof wanted, "%s%s ", prefix, key);
    for (const char *line = state; line; line = strchr(line, '\n')) {
        if (*line == '\n') line++;
        if (!strncmp(line, wanted, size)) return line + size;
    }
    return NULL;
}

static int number(const char *prefix, const char *key, u64 *out) {
    const char *value = find(prefix, key);
    if (value) *out = strtoull(value, NULL, 0);
    return value != NULL;
}

static ret text(const char *prefix, const char *key, char *out, unsigned size) {
    const char *value = find(prefix, key);
    if (!value) return NOT_SUPPORTED;
    size_t length = strcspn(value, "\n");
    if (length + 1 > size) return INSUFFICIENT_SIZE;
    memcpy(out, value, length);
    out[length] = 0;
    return SUCCESS;
}

static void nap(long ms) {
    struct timespec pause = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&pause, NULL);
}

/* Hang, then fail, as the file asks of this function under this prefix. */
static ret injected(const char *prefix, const char *function) {
    char key[128];
    u64 value = 0;
    snprintf(key, sizeof key, "hang.%s", function);
    for (u64 waited = 0; number(prefix, key, &value) && waited < value; waited += 10) {
        nap(10);
        load();
    }
    snprintf(key, sizeof key, "error.%s", function);
    value = 0;
    number(prefix, key, &value);
    return (ret)value;
}

/* How every call begins; system calls pass no device. */
static ret enter(const char *function) {
    if (!users) return UNINITIALIZED;
    load();
    return injected("", function);
}

static ret enter_device(const char *function, const device *d) {
    u64 lost = 0;
    ret failed = enter(function);
    if (failed) return failed;
    if (!d) return INVALID_ARGUMENT;
    number(d->card, "lost", &lost);
    return lost ? GPU_IS_LOST : injected(d->prefix, function);
}

#define CHECK(call) do { ret failed_ = (call); if (failed_) return failed_; } while (0)
#define SYSTEM() CHECK(enter(__func__))
#define DEVICE(d) CHECK(enter_device(__func__, d))

/* Most of NVML: one number of one device. */
#define METRIC(function, type, key)                                  \
    API ret function(device *d, type *out) {                         \
        u64 value;                                                   \
        DEVICE(d);                                                   \
        if (!number(d->prefix, key, &value)) return NOT_SUPPORTED;   \
        *out = (type)value;                                          \
        return SUCCESS;                                              \
    }

/* ---- library and system ---- */

API ret nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    load();
    CHECK(injected("", __func__));
    for (unsigned i = 0; i < CARDS; i++) {
        cards[i].index = i;
        snprintf(cards[i].card, sizeof cards[i].card, "%u.", i);
        snprintf(cards[i].prefix, sizeof cards[i].prefix, "%u.", i);
        for (unsigned j = 0; j < INSTANCES; j++) {
            instances[i][j] = cards[i];
            instances[i][j].is_mig = 1;
            snprintf(instances[i][j].prefix, sizeof cards[i].prefix, "%u.mig%u.", i, j);
        }
    }
    users++;
    return SUCCESS;
}

API ret nvmlShutdown(void) {
    if (!users) return UNINITIALIZED;
    users--;
    return SUCCESS;
}

API const char *nvmlErrorString(ret code) {
    static _Thread_local char sentence[32];
    snprintf(sentence, sizeof sentence, "Fake NVML error %d", code);
    return sentence;
}

API ret nvmlSystemGetDriverVersion(char *out, unsigned size) { SYSTEM(); return text("", "driver", out, size); }

API ret nvmlDeviceGetCount_v2(unsigned *count) {
    u64 value = 0;
    SYSTEM();
    number("", "count", &value);
    *count = (unsigned)value;
    return SUCCESS;
}

API ret nvmlDeviceGetHandleByIndex_v2(unsigned index, device **out) {
    u64 count = 0;
    SYSTEM();
    if (!number("", "count", &count) || index >= count || index >= CARDS) return INVALID_ARGUMENT;
    DEVICE(&cards[index]);
    *out = &cards[index];
    return SUCCESS;
}

static int is_called(device *d, const char *uuid) {
    char own[96];
    return text(d->prefix, "uuid", own, sizeof own) == SUCCESS && !strcmp(own, uuid);
}

API ret nvmlDeviceGetHandleByUUID(const char *uuid, device **out) {
    SYSTEM();
    for (unsigned i = 0; i < CARDS; i++) {
        if (is_called(&cards[i], uuid)) { *out = &cards[i]; return SUCCESS; }
        for (unsigned j = 0; j < INSTANCES; j++)
            if (is_called(&instances[i][j], uuid)) { *out = &instances[i][j]; return SUCCESS; }
    }
    return NOT_FOUND;
}

/* ---- what a device is ---- */

API ret nvmlDeviceGetName(device *d, char *out, unsigned size) { DEVICE(d); return text(d->prefix, "name", out, size); }
API ret nvmlDeviceGetUUID(device *d, char *out, unsigned size) { DEVICE(d); return text(d->prefix, "uuid", out, size); }
METRIC(nvmlDeviceGetMaxPcieLinkGeneration, unsigned, "pcie_gen")
METRIC(nvmlDeviceGetMaxPcieLinkWidth, unsigned, "pcie_width")
METRIC(nvmlDeviceGetDisplayActive, unsigned, "display")
METRIC(nvmlDeviceGetDisplayMode, unsigned, "display_mode")

enum { CLOCK_SM = 1, CLOCK_MEMORY = 2 };

static ret clock_of(const device *d, int clock, const char *sm, const char *memory, unsigned *out) {
    u64 mhz;
    const char *key = clock == CLOCK_SM ? sm : clock == CLOCK_MEMORY ? memory : NULL;
    if (!key) return INVALID_ARGUMENT;
    if (!number(d->prefix, key, &mhz)) return NOT_SUPPORTED;
    *out = (unsigned)mhz;
    return SUCCESS;
}

API ret nvmlDeviceGetMaxClockInfo(device *d, int clock, unsigned *out) { DEVICE(d); return clock_of(d, clock, "clock_max_mhz", "memory_clock_max_mhz", out); }

API ret nvmlDeviceGetCudaComputeCapability(device *d, int *major, int *minor) {
    DEVICE(d);
    const char *value = find(d->prefix, "compute_capability");
    return value && sscanf(value, "%d.%d", major, minor) == 2 ? SUCCESS : NOT_SUPPORTED;
}

API ret nvmlDeviceGetPciInfo_v3(device *d, pci_info *out) {
    DEVICE(d);
    memset(out, 0, sizeof *out);
    return text(d->prefix, "bus_id", out->bus_id, sizeof out->bus_id);
}

/* ---- what it does right now ---- */

static ret memory(const device *d, memory_v2 *out) {
    out->used = out->reserved = 0;
    if (!number(d->prefix, "memory_total", &out->total)) return NOT_SUPPORTED;
    number(d->prefix, "memory_used", &out->used);
    number(d->prefix, "memory_reserved", &out->reserved);
    out->free = out->total - out->used - out->reserved;
    return SUCCESS;
}

API ret nvmlDeviceGetMemoryInfo_v2(device *d, memory_v2 *out) {
    DEVICE(d);
    return out->version == (sizeof *out | 2u << 24) ? memory(d, out) : VERSION_MISMATCH;
}

/* The first version counts what the driver reserves as used. */
API ret nvmlDeviceGetMemoryInfo(device *d, memory_v1 *out) {
    memory_v2 now;
    DEVICE(d);
    CHECK(memory(d, &now));
    *out = (memory_v1){now.total, now.free, now.used + now.reserved};
    return SUCCESS;
}

API ret nvmlDeviceGetUtilizationRates(device *d, utilization *out) {
    u64 percent;
    DEVICE(d);
    if (d->is_mig || !number(d->prefix, "utilization", &percent)) return NOT_SUPPORTED;
    *out = (utilization){(unsigned)percent, 0};
    return SUCCESS;
}

API ret nvmlDeviceGetTemperatureV(device *d, temperature_v1 *out) {
    u64 celsius;
    DEVICE(d);
    if (out->version != (sizeof *out | 1u << 24)) return VERSION_MISMATCH;
    if (!number(d->prefix, "temperature", &celsius)) return NOT_SUPPORTED;
    out->celsius = (int)celsius;
    return SUCCESS;
}

API ret nvmlDeviceGetTemperature(device *d, int sensor, unsigned *out) {
    u64 celsius;
    (void)sensor;
    DEVICE(d);
    if (!number(d->prefix, "temperature", &celsius)) return NOT_SUPPORTED;
    *out = (unsigned)celsius;
    return SUCCESS;
}

METRIC(nvmlDeviceGetPowerUsage, unsigned, "power_mw")
METRIC(nvmlDeviceGetEnforcedPowerLimit, unsigned, "power_limit_mw")
METRIC(nvmlDeviceGetCurrentClocksEventReasons, u64, "throttle")
METRIC(nvmlDeviceGetCurrentClocksThrottleReasons, u64, "throttle")

METRIC(nvmlDeviceGetTotalEnergyConsumption, u64, "energy_mj")
METRIC(nvmlDeviceGetFanSpeed, unsigned, "fan")
METRIC(nvmlDeviceGetCurrPcieLinkGeneration, unsigned, "pcie_gen_now")
METRIC(nvmlDeviceGetCurrPcieLinkWidth, unsigned, "pcie_width_now")

API ret nvmlDeviceGetClockInfo(device *d, int clock, unsigned *out) { DEVICE(d); return clock_of(d, clock, "clock_mhz", "memory_clock_mhz", out); }

API ret nvmlDeviceGetTotalEccErrors(device *d, int type, int counter, u64 *out) {
    (void)counter;
    DEVICE(d);
    return number(d->prefix, type == 1 ? "ecc_uncorrected" : "ecc_corrected", out) ? SUCCESS : NOT_SUPPORTED;
}

API ret nvmlDeviceGetRemappedRows(device *d, unsigned *correctable, unsigned *uncorrectable, unsigned *pending, unsigned *failed) {
    DEVICE(d);
    const char *value = find(d->prefix, "remapped");
    int read = value ? sscanf(value, "%u:%u:%u:%u", correctable, uncorrectable, pending, failed) : 0;
    return read == 4 ? SUCCESS : NOT_SUPPORTED;
}

/* Each field has a verdict of its own; the call succeeds whatever they are. */
API ret nvmlDeviceGetFieldValues(device *d, int count, field_value *values) {
    enum { MEMORY_TEMPERATURE = 82, UNSIGNED_INT = 1 };
    DEVICE(d);
    for (int i = 0; i < count; i++) {
        u64 celsius, code = NOT_SUPPORTED;
        number(d->prefix, "memory_temperature_error", &code);
        values[i].type = UNSIGNED_INT;
        values[i].result = (ret)code;
        if (values[i].id != MEMORY_TEMPERATURE) values[i].result = NOT_SUPPORTED;
        else if (number(d->prefix, "memory_temperature", &celsius)) values[i].result = SUCCESS, values[i].value = celsius;
    }
    return SUCCESS;
}

/* What each process did since ``since`` (microseconds); NVML's convention for too little room. */
API ret nvmlDeviceGetProcessUtilization(device *d, process_use *out, unsigned *count, u64 since) {
    struct timespec now;
    unsigned room = out ? *count : 0, found = 0;
    DEVICE(d);
    const char *next = find(d->prefix, "process_utilization");
    if (!next) return NOT_SUPPORTED;
    clock_gettime(CLOCK_REALTIME, &now);
    while (*next && *next != '\n') {
        char *end;
        process_use one = {(unsigned)strtoul(next, &end, 10), 0, 0, 0, 0, 0};
        one.time = (u64)now.tv_sec * 1000000 + (u64)now.tv_nsec / 1000;
        if (*end == ':') one.sm = (unsigned)strtoul(end + 1, &end, 10);
        /* real drivers hand out old entries too, so those with a time of their own always come */
        if (*end == ':') one.time = strtoull(end + 1, &end, 10);
        else if (one.time <= since) one.pid = 0;
        if (found < room) out[found] = one;
        found++;
        if (*end != ',') break;
        next = end + 1;
    }
    *count = found;
    return !found ? NOT_FOUND : found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

/* NVML's convention: with too little room, say how much is needed. */
static ret processes(const device *d, const char *key, unsigned *count, process *out) {
    unsigned room = out ? *count : 0, found = 0;
    const char *next = find(d->prefix, key);
    while (next && *next && *next != '\n') {
        char *end;
        process one = {(unsigned)strtoul(next, &end, 10), ~0ull, ~0u, ~0u};
        if (*end == ':') one.memory = strtoull(end + 1, &end, 10);
        if (found < room) out[found] = one;
        found++;
        next = *end == ',' ? end + 1 : NULL;
    }
    *count = found;
    return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

API ret nvmlDeviceGetComputeRunningProcesses_v3(device *d, unsigned *count, process *out) { DEVICE(d); return processes(d, "processes", count, out); }
API ret nvmlDeviceGetGraphicsRunningProcesses_v3(device *d, unsigned *count, process *out) { DEVICE(d); return processes(d, "graphics", count, out); }

/* ---- MIG ---- */

API ret nvmlDeviceGetMigMode(device *d, unsigned *current, unsigned *pending) {
    u64 mode;
    DEVICE(d);
    if (!number(d->prefix, "mig_mode", &mode)) return NOT_SUPPORTED;
    *current = *pending = (unsigned)mode;
    return SUCCESS;
}

API ret nvmlDeviceGetMaxMigDeviceCount(device *d, unsigned *count) { DEVICE(d); *count = INSTANCES - 1; return SUCCESS; }

API ret nvmlDeviceGetMigDeviceHandleByIndex(device *d, unsigned index, device **out) {
    DEVICE(d);
    if (index >= INSTANCES || !find(instances[d->index][index].prefix, "uuid")) return NOT_FOUND;
    *out = &instances[d->index][index];
    return SUCCESS;
}

METRIC(nvmlDeviceGetGpuInstanceId, unsigned, "gi")
METRIC(nvmlDeviceGetComputeInstanceId, unsigned, "ci")

/* ---- Xid events ---- */

typedef struct { device *watched[CARDS]; u64 seen[CARDS]; unsigned count; } event_set;
enum { XID_CRITICAL = 8 };

/* The last Xid of a card: its running number (0: never), code and MIG instance. */
static u64 last_xid(const device *d, event *out) {
    u64 serial = 0;
    const char *value = find(d->prefix, "xid");
    *out = (event){(device *)d, XID_CRITICAL, 0, ~0u, ~0u};
    if (value) sscanf(value, "%llu:%llu:%u:%u", &serial, &out->data, &out->gi, &out->ci);
    return serial;
}

API ret nvmlDeviceGetSupportedEventTypes(device *d, u64 *types) { DEVICE(d); *types = XID_CRITICAL; return SUCCESS; }
API ret nvmlEventSetCreate(event_set **out) { SYSTEM(); *out = calloc(1, sizeof **out); return SUCCESS; }
API ret nvmlEventSetFree(event_set *set) { SYSTEM(); free(set); return SUCCESS; }

API ret nvmlDeviceRegisterEvents(device *d, u64 types, event_set *set) {
    event ignored;
    (void)types;
    DEVICE(d);
    if (set->count == CARDS) return INSUFFICIENT_SIZE;
    set->seen[set->count] = last_xid(d, &ignored);
    set->watched[set->count++] = d;
    return SUCCESS;
}

API ret nvmlEventSetWait_v2(event_set *set, event *out, unsigned timeout_ms) {
    for (unsigned waited = 0;; waited += 10) {
        SYSTEM();
        for (unsigned i = 0; i < set->count; i++) {
            u64 serial = last_xid(set->watched[i], out);
            if (serial <= set->seen[i]) continue;
            set->seen[i] = serial;
            return SUCCESS;
        }
        if (waited >= timeout_ms) return TIMEOUT;
        nap(10);
    }
}
