// SPDX-License-Identifier: Apache-2.0
//
// The pinhole: decides which packets of a device are Tidegate's and hands those to its AF_XDP sockets.
//
// Ours are: packets to a TRAFFIC prefix; TCP, UDP and SCTP to one of our endpoints (address, protocol, port: a tunnel's, or a
// node port), and ICMP errors about what we sent from one; IP in IP to one of our endpoints (port 0); ARP requests and
// neighbour solicitations for an ANNOUNCED address. Everything else passes to the kernel untouched, so that a mistake here cannot
// take a node's management away. What is ours and finds no socket on its queue is dropped and counted, never passed (a
// kernel without our state would answer it with resets), unless the setting says otherwise.
//
// It reads no more than it needs to recognise addresses: Ethernet, up to two VLAN tags, IPv4 or IPv6, the UDP port.
// Whatever else may be wrong with a packet is for its receiver to find out.
//
//   - Fragments other than the first carry no port. Those for an endpoint's address pass to the kernel, which holds them
//     until its reassembly times out; it never has the first one, so it answers nothing. (RFC 7348 section 4.3: VXLAN
//     packets must not be fragmented, and may be discarded when they are.) First fragments reach Tidegate.
//   - Fragments of IP in IP are all ours, since their protocol is in each of them; Tidegate counts and drops them.
//   - In IPv6, TCP, UDP and SCTP are recognised directly after the IPv6 header or after one fragment header. Packets with other
//     extension headers are ours by TRAFFIC prefix only. An ICMP error's quote is read where it has no extension header.
//   - A neighbour solicitation for an address that is not ANNOUNCED is treated as any packet to its destination.

#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Keep the numbers in step with src/pinhole.rs. */
#define TRAFFIC 1
#define ANNOUNCED 2

#define PREFIXES_MAX 131072
#define ENDPOINTS_MAX 65536
#define QUEUES_MAX 256

#define ON_DEATH_DROP 0
#define ON_DEATH_PASS 1

#define ETHERTYPE_IPV4 0x0800
#define ETHERTYPE_ARP 0x0806
#define ETHERTYPE_VLAN 0x8100
#define ETHERTYPE_IPV6 0x86dd
#define ETHERTYPE_QINQ 0x88a8

#define PROTOCOL_ICMP 1
#define PROTOCOL_IPIP 4
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define PROTOCOL_IPV6 41
#define PROTOCOL_FRAGMENT 44
#define PROTOCOL_ICMPV6 58
#define PROTOCOL_SCTP 132
#define ICMP_UNREACHABLE 3
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER_PROBLEM 12
#define ICMPV6_ERROR_MAX 4
#define ICMPV6_NEIGHBOR_SOLICITATION 135
#define ARP_REQUEST 1

struct prefix_v4 {
	__u32 length;
	__u8 address[4];
};

struct prefix_v6 {
	__u32 length;
	__u8 address[16];
};

/* An address with protocol and port; IPv4 as ::ffff:a.b.c.d. */
struct endpoint {
	__u8 address[16];
	__be16 port;
	__u8 protocol;
	__u8 unused;
};

struct settings {
	__u32 on_death;
};

struct counters {
	__u64 passed;
	__u64 redirected;
	__u64 dropped_dead;
	__u64 passed_dead;
	__u64 malformed;
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PREFIXES_MAX);
	__type(key, struct prefix_v4);
	__type(value, __u32);
} prefixes_v4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, PREFIXES_MAX);
	__type(key, struct prefix_v6);
	__type(value, __u32);
} prefixes_v6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, ENDPOINTS_MAX);
	__type(key, struct endpoint);
	__type(value, __u32);
} endpoints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, QUEUES_MAX);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

struct ethernet {
	__u8 destination[6];
	__u8 source[6];
	__be16 type;
} __attribute__((packed));

struct vlan {
	__be16 control;
	__be16 type;
} __attribute__((packed));

struct ipv4 {
	__u8 version_length;
	__u8 tos;
	__be16 total_length;
	__be16 identification;
	__be16 fragment;
	__u8 ttl;
	__u8 protocol;
	__be16 checksum;
	__u8 source[4];
	__u8 destination[4];
} __attribute__((packed));

struct ipv6 {
	__u8 version;
	__u8 flow[3];
	__be16 payload_length;
	__u8 next_header;
	__u8 hop_limit;
	__u8 source[16];
	__u8 destination[16];
} __attribute__((packed));

struct fragment {
	__u8 next_header;
	__u8 reserved;
	__be16 offset;
	__be32 identification;
} __attribute__((packed));

/* What TCP, UDP and SCTP headers begin with. */
struct ports {
	__be16 source;
	__be16 destination;
} __attribute__((packed));

/* What ICMP errors of both families begin with, before their quote. */
struct icmp {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 rest;
} __attribute__((packed));

struct solicitation {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 reserved;
	__u8 target[16];
} __attribute__((packed));

struct arp {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_length;
	__u8 protocol_length;
	__be16 operation;
	__u8 sender_hardware[6];
	__u8 sender[4];
	__u8 target_hardware[6];
	__u8 target[4];
} __attribute__((packed));

enum owner { KERNEL, TIDEGATE, MALFORMED };

/*
 * Does the packet end before the header does that `header` points at? A question and not a pointer that may be nothing: the
 * verifier lets only CAP_PERFMON compare a pointer into a packet with zero.
 */
#define CUT(header, end) ((void *)((header) + 1) > (end))

/*
 * What is behind an IPv4 header of `words` 32-bit words, 5 to 15. Steps whose length stands in the program, since the verifier
 * lets only CAP_PERFMON add a variable to a pointer into a packet; in assembler, so that the compiler does not make one
 * addition of them.
 */
#define STEP(at, words, n)                                            \
	do {                                                          \
		if ((words) == (n))                                   \
			asm volatile("%0 += %1" : "+r"(at) : "i"((n)*4)); \
	} while (0)

static __always_inline void *behind(void *at, __u32 words)
{
	STEP(at, words, 5);
	if (words == 5)
		return at;
	STEP(at, words, 6);
	STEP(at, words, 7);
	STEP(at, words, 8);
	STEP(at, words, 9);
	STEP(at, words, 10);
	STEP(at, words, 11);
	STEP(at, words, 12);
	STEP(at, words, 13);
	STEP(at, words, 14);
	STEP(at, words, 15);
	return at;
}

static __always_inline __u32 flags_v4(const __u8 *address)
{
	struct prefix_v4 key = { .length = 32 };
	__builtin_memcpy(key.address, address, 4);
	__u32 *flags = bpf_map_lookup_elem(&prefixes_v4, &key);
	return flags ? *flags : 0;
}

static __always_inline __u32 flags_v6(const __u8 *address)
{
	struct prefix_v6 key = { .length = 128 };
	__builtin_memcpy(key.address, address, 16);
	__u32 *flags = bpf_map_lookup_elem(&prefixes_v6, &key);
	return flags ? *flags : 0;
}

static __always_inline enum owner owner_arp(void *at, void *end)
{
	struct arp *arp = at;
	if (CUT(arp, end))
		return MALFORMED;
	if (arp->protocol != bpf_htons(ETHERTYPE_IPV4) || arp->hardware_length != 6 || arp->protocol_length != 4)
		return KERNEL;
	if (arp->operation != bpf_htons(ARP_REQUEST))
		return KERNEL;
	return flags_v4(arp->target) & ANNOUNCED ? TIDEGATE : KERNEL;
}

/* Is the segment or datagram at `at` for the endpoint whose address is in `key`? */
static __always_inline enum owner owner_port(struct endpoint *key, __u8 protocol, void *at, void *end)
{
	struct ports *ports = at;
	if (CUT(ports, end))
		return MALFORMED;
	key->port = ports->destination;
	key->protocol = protocol;
	return bpf_map_lookup_elem(&endpoints, key) ? TIDEGATE : KERNEL;
}

static __always_inline int has_ports(__u8 protocol)
{
	return protocol == PROTOCOL_TCP || protocol == PROTOCOL_UDP || protocol == PROTOCOL_SCTP;
}

static __always_inline int is_ip_in_ip(__u8 protocol)
{
	return protocol == PROTOCOL_IPIP || protocol == PROTOCOL_IPV6;
}

/* Does a tunnel of this protocol end at the endpoint whose address is in `key`? */
static __always_inline enum owner owner_tunnel(struct endpoint *key, __u8 protocol)
{
	key->port = 0;
	key->protocol = protocol;
	return bpf_map_lookup_elem(&endpoints, key) ? TIDEGATE : KERNEL;
}

/* Was the segment or datagram quoted at `at` sent from the endpoint whose address is in `key`? */
static __always_inline enum owner owner_quoted(struct endpoint *key, __u8 protocol, void *at, void *end)
{
	struct ports *ports = at;
	if (CUT(ports, end) || !has_ports(protocol))
		return KERNEL;
	key->port = ports->source;
	key->protocol = protocol;
	return bpf_map_lookup_elem(&endpoints, key) ? TIDEGATE : KERNEL;
}

static __always_inline enum owner owner_error_v4(struct endpoint *key, void *at, void *end)
{
	struct icmp *icmp = at;
	if (CUT(icmp, end))
		return MALFORMED;
	if (icmp->type != ICMP_UNREACHABLE && icmp->type != ICMP_TIME_EXCEEDED && icmp->type != ICMP_PARAMETER_PROBLEM)
		return KERNEL;
	struct ipv4 *quoted = (void *)(icmp + 1);
	if (CUT(quoted, end) || quoted->fragment & bpf_htons(0x1fff))
		return KERNEL;
	__u32 words = quoted->version_length & 0x0f;
	if (words < 5)
		return KERNEL;
	return owner_quoted(key, quoted->protocol, behind(quoted, words), end);
}

static __always_inline enum owner owner_error_v6(struct endpoint *key, void *at, void *end)
{
	struct icmp *icmp = at;
	if (CUT(icmp, end))
		return MALFORMED;
	if (icmp->type == 0 || icmp->type > ICMPV6_ERROR_MAX)
		return KERNEL;
	struct ipv6 *quoted = (void *)(icmp + 1);
	if (CUT(quoted, end))
		return KERNEL;
	return owner_quoted(key, quoted->next_header, quoted + 1, end);
}

static __always_inline enum owner owner_v4(void *at, void *end)
{
	struct ipv4 *ip = at;
	if (CUT(ip, end))
		return MALFORMED;
	__u32 words = ip->version_length & 0x0f;
	if (ip->version_length >> 4 != 4 || words < 5)
		return MALFORMED;
	if (flags_v4(ip->destination) & TRAFFIC)
		return TIDEGATE;
	struct endpoint key = { .address = { [10] = 0xff, [11] = 0xff } };
	__builtin_memcpy(key.address + 12, ip->destination, 4);
	if (is_ip_in_ip(ip->protocol))
		return owner_tunnel(&key, ip->protocol);
	if (ip->fragment & bpf_htons(0x1fff))
		return KERNEL;
	if (ip->protocol == PROTOCOL_ICMP)
		return owner_error_v4(&key, behind(ip, words), end);
	if (!has_ports(ip->protocol))
		return KERNEL;
	return owner_port(&key, ip->protocol, behind(ip, words), end);
}

static __always_inline enum owner owner_v6(void *at, void *end)
{
	struct ipv6 *ip = at;
	if (CUT(ip, end) || ip->version >> 4 != 6)
		return MALFORMED;
	if (flags_v6(ip->destination) & TRAFFIC)
		return TIDEGATE;
	/* An IPv4 address in an IPv6 header is nobody's (RFC 4942 section 2.2), and no key of an endpoint of IPv4's. */
	__u32 words[4];
	__builtin_memcpy(words, ip->destination, 16);
	if (!words[0] && !words[1] && words[2] == bpf_htonl(0xffff))
		return KERNEL;
	at = ip + 1;
	__u8 next_header = ip->next_header;
	struct endpoint key = {};
	__builtin_memcpy(key.address, ip->destination, 16);
	if (next_header == PROTOCOL_ICMPV6) {
		struct solicitation *ns = at;
		if (!CUT(ns, end) && ns->type == ICMPV6_NEIGHBOR_SOLICITATION)
			return flags_v6(ns->target) & ANNOUNCED ? TIDEGATE : KERNEL;
		return owner_error_v6(&key, at, end);
	}
	if (is_ip_in_ip(next_header))
		return owner_tunnel(&key, next_header);
	if (next_header == PROTOCOL_FRAGMENT) {
		struct fragment *fragment = at;
		if (CUT(fragment, end))
			return MALFORMED;
		if (is_ip_in_ip(fragment->next_header))
			return owner_tunnel(&key, fragment->next_header);
		if (fragment->offset & bpf_htons(0xfff8))
			return KERNEL;
		next_header = fragment->next_header;
		at = fragment + 1;
	}
	if (!has_ports(next_header))
		return KERNEL;
	return owner_port(&key, next_header, at, end);
}

static __always_inline enum owner owner(void *at, void *end)
{
	struct ethernet *ethernet = at;
	if (CUT(ethernet, end))
		return MALFORMED;
	__be16 type = ethernet->type;
	at = ethernet + 1;
#pragma unroll
	for (int tag = 0; tag < 2; tag++) {
		if (type != bpf_htons(ETHERTYPE_VLAN) && type != bpf_htons(ETHERTYPE_QINQ))
			break;
		struct vlan *vlan = at;
		if (CUT(vlan, end))
			return MALFORMED;
		type = vlan->type;
		at = vlan + 1;
	}
	if (type == bpf_htons(ETHERTYPE_IPV4))
		return owner_v4(at, end);
	if (type == bpf_htons(ETHERTYPE_IPV6))
		return owner_v6(at, end);
	if (type == bpf_htons(ETHERTYPE_ARP))
		return owner_arp(at, end);
	return KERNEL;
}

/* The kernel program's name, by which a later start recognises what an earlier one left attached. */
SEC("xdp")
int tidegate(struct xdp_md *context)
{
	__u32 zero = 0;
	struct counters *count = bpf_map_lookup_elem(&counters, &zero);
	if (!count)
		return XDP_PASS;

	enum owner whose = owner((void *)(long)context->data, (void *)(long)context->data_end);
	if (whose != TIDEGATE) {
		count->passed++;
		if (whose == MALFORMED)
			count->malformed++;
		return XDP_PASS;
	}
	/* A socket that was closed, by whatever death, is no longer in the map; then the fallback (aborted) comes back. */
	if (bpf_redirect_map(&sockets, context->rx_queue_index, XDP_ABORTED) == XDP_REDIRECT) {
		count->redirected++;
		return XDP_REDIRECT;
	}
	struct settings *setting = bpf_map_lookup_elem(&settings, &zero);
	if (setting && setting->on_death == ON_DEATH_PASS) {
		count->passed_dead++;
		return XDP_PASS;
	}
	count->dropped_dead++;
	return XDP_DROP;
}

char LICENSE[] SEC("license") = "Apache-2.0";
