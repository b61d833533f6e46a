'use strict';
'require baseclass';

/* The values of options, judged as the agent judges them (src/config/value.rs and agent/parse.rs).
   Each function answers true, or what the value must be. An empty value is no value. */

const NUMBER = /^[0-9]+$/;

function expected(words) {
	return _('Expecting: %s').format(words);
}

/* A validator of texts that `accepts`, and otherwise are to be as the `words` say. */
function validator(accepts, words) {
	return text => text === '' || text == null || accepts(text) || expected(words());
}

/* Bytes of an address, without leading zeros as the agent wants it; null where it is none. */
function ipv4(text) {
	const parts = text.split('.');
	const octet = part => /^(0|[1-9][0-9]{0,2})$/.test(part) && +part <= 255;

	return (parts.length == 4 && parts.every(octet)) ? parts.map(Number) : null;
}

function ipv6(text) {
	const dotted = /^(.*:)([0-9.]+)$/.exec(text);

	if (dotted && dotted[2].includes('.')) {
		const bytes = ipv4(dotted[2]);

		if (!bytes)
			return null;

		const group = at => (bytes[at] * 256 + bytes[at + 1]).toString(16);

		text = '%s%s:%s'.format(dotted[1], group(0), group(2));
	}

	const halves = text.split('::').map(half => (half === '') ? [] : half.split(':'));
	const groups = halves.flat();

	if (halves.length > 2 || !groups.every(part => /^[0-9a-fA-F]{1,4}$/.test(part)))
		return null;

	if (halves.length == 1 ? groups.length != 8 : groups.length > 7)
		return null;

	const zeros = Array(8 - groups.length).fill('0');

	return [ ...halves[0], ...zeros, ...(halves[1] ?? []) ].flatMap(part => {
		const value = parseInt(part, 16);

		return [ value >> 8, value & 255 ];
	});
}

function address(text) {
	return ipv4(text) ?? ipv6(text);
}

function isPort(text) {
	return NUMBER.test(text) && +text >= 1 && +text <= 65535;
}

function isPortRange(text) {
	const at = text.indexOf('-');
	const [ first, last ] = (at < 0) ? [ text, text ] : [ text.slice(0, at), text.slice(at + 1) ];

	return isPort(first) && isPort(last) && +first <= +last;
}

function isHost(text) {
	if (address(text))
		return true;

	const labels = text.split('.');

	/* A last label of digits alone is a mistyped IPv4 address. */
	return text.length <= 253 && !/^[0-9]*$/.test(labels[labels.length - 1]) &&
		labels.every(label => /^(?!-)[A-Za-z0-9-]{1,63}$/.test(label) && !label.endsWith('-'));
}

function isHostPort(text) {
	const [ , host, port ] = /^(.*):([^:]*)$/s.exec(text) ?? [];

	if (host == null || !isPort(port))
		return false;

	const literal = /^\[(.*)\]$/.exec(host);

	return literal ? ipv6(literal[1]) != null : !/[\[:]/.test(host) && isHost(host);
}

/* The address of ADDRESS:PORT; null where it is none. */
function socketAddress(text) {
	const match = /^(?:([0-9.]+)|\[([0-9a-fA-F:.]+)(?:%([0-9]+))?\]):([0-9]+)$/.exec(text);

	if (!match || !isPort(match[4]) || +(match[3] ?? 0) > 0xffffffff)
		return null;

	return match[1] ? ipv4(match[1]) : ipv6(match[2]);
}

/* Neither loopback nor unspecified nor multicast. */
function isLanTarget(text) {
	let bytes = socketAddress(text);

	if (!bytes)
		return false;

	const mapped = bytes.length == 16 && bytes.slice(0, 10).every(byte => byte == 0) &&
		bytes[10] == 255 && bytes[11] == 255;

	if (mapped)
		bytes = bytes.slice(12);

	if (bytes.length == 4)
		return bytes[0] != 127 && !(bytes[0] >= 224 && bytes[0] <= 239) && bytes.some(byte => byte != 0);

	return bytes[0] != 255 && !(bytes.slice(0, 15).every(byte => byte == 0) && bytes[15] <= 1);
}

/* The bytes of an address or a prefix without host bits; null where it is none. */
function network(text) {
	const [ , literal, length ] = /^([^/]*)(?:\/\+?([0-9]+))?$/.exec(text) ?? [];
	const bytes = (literal != null) ? address(literal) : null;

	if (!bytes || +(length ?? 0) > 8 * bytes.length)
		return null;

	const kept = length ?? 8 * bytes.length;
	const hostBits = (byte, index) => byte & (255 >> Math.min(8, Math.max(0, kept - 8 * index)));

	return bytes.some((byte, index) => hostBits(byte, index) != 0) ? null : bytes;
}

function isMac(text) {
	return /^[0-9a-fA-F]{2}([:-])[0-9a-fA-F]{2}(\1[0-9a-fA-F]{2}){4}$/.test(text);
}

function isAmount(text) {
	const [ , digits, unit ] = /^([0-9]+)([KMGT]?)$/i.exec(text) ?? [];

	if (digits == null)
		return false;

	return BigInt(digits) * 1000n ** BigInt(' KMGT'.indexOf(unit.toUpperCase() || ' ')) < 1n << 64n;
}

function isDay(text) {
	return /^\+?[0-9]+$/.test(text) && +text >= 1 && +text <= 31;
}

function isDevice(text) {
	return /^[!-~]{1,15}$/.test(text) && !/[/:"'\\*]/.test(text) && text != '.' && text != '..';
}

function isInterface(text) {
	return /^[A-Za-z0-9_.-]+$/.test(text);
}

function isPublicKey(text) {
	return /^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$/.test(text) && !/^A+=$/.test(text);
}

function isCheckUrl(text) {
	if (text == 'off')
		return true;

	const [ , authority, path ] = /^http:\/\/([^/]*)(.*)$/s.exec(text) ?? [];

	if (authority == null || !/^[!-~]*$/.test(path) || /["<>\\^`{|}#]/.test(path))
		return false;

	return isHostPort(authority) || isHostPort('%s:80'.format(authority));
}

/* What 'mptcp-bond server invite' printed, perhaps with the quotes around it; as src/config/pairing.rs. */
function isPairingUri(text) {
	const uri = text.trim().replace(/^['"]+|['"]+$/g, '');
	const [ , server, query ] = /^mptcp-bond:\/\/(.*?)\/\?(.*)$/s.exec(uri) ?? [];

	if (uri.length > 512 || server == null || !isHostPort(server))
		return false;

	const parameters = query.split('&').map(parameter => parameter.split(/=(.*)/s));
	const values = Object.fromEntries(parameters);
	const isKey = key => /^[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]$/.test(key);

	return parameters.length == 3 && values.v == '1' && isKey(values.key) && isKey(values.token) &&
		!/^A+$/.test(values.key);
}

return baseclass.extend({
	ipv6OfNetwork: text => network(text)?.length == 16,

	port: validator(isPort, () => _('a port from 1 to 65535')),

	portRange: validator(isPortRange, () => _('a port from 1 to 65535, or a range such as 8000-8100')),

	host: validator(isHost, () => _('a host name or an IP address, such as vps.example.net or 2001:db8::1')),

	listen: validator(text => socketAddress(text) != null, () => _('ADDRESS:PORT such as 127.0.0.1:8484 or [::1]:8484')),

	lanTarget: validator(isLanTarget, () => _('ADDRESS:PORT of a host on the LAN, such as 192.168.1.10:22')),

	network: validator(text => network(text) != null,
		() => _('an address, or a prefix without host bits, such as 192.0.2.1 or 10.0.0.0/8')),

	mac: validator(isMac, () => _('a MAC address such as 02:00:5e:10:00:01')),

	amount: validator(isAmount, () => _('bytes, with K, M, G or T for powers of 1000, such as 500M or 50G')),

	day: validator(isDay, () => _('a day of the month from 1 to 31')),

	device: validator(isDevice, () => _('a network device such as eth1')),

	interface: validator(isInterface, () => _('an interface such as wan')),

	lan: validator(text => isInterface(text) || isDevice(text), () => _('an interface such as lan, or a network device such as br-lan')),

	publicKey: validator(isPublicKey, () => _('a public key: 44 characters that end in "="')),

	checkUrl: validator(isCheckUrl, () => _('a URL such as http://example.net/generate_204, not https, or "off"')),

	pairingUri: validator(isPairingUri, () => _('all of what "mptcp-bond server invite" printed: mptcp-bond://HOST:PORT/?key=...&token=...&v=1'))
});
