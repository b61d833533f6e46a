'use strict';
'require view';
'require dom';
'require form';
'require uci';
'require ui';
'require mptcp-bond.agent as agent';
'require mptcp-bond.notices as notices';
'require mptcp-bond.style as style';
'require mptcp-bond.text as text';
'require mptcp-bond.values as values';

/* The kernel keeps 8 MPTCP endpoints. */
const MAX_UPLINKS = 8;

/* The section that a pairing writes. */
const PAIRED = 'vps';

function interfaces() {
	return uci.sections('network', 'interface').map(section => section['.name']).filter(name => name != 'loopback');
}

/* Whether no other section of its type claims the same. */
function unique(section_id, type, claims) {
	const other = uci.sections('mptcpd', type).find(section => section['.name'] != section_id && claims(section));

	return other ? _('That is used by "%s" already.').format(other['.name']) : true;
}

/* The first judgement that is not true. */
function first(...judgements) {
	for (const judge of judgements) {
		const judgement = judge();

		if (judgement !== true)
			return judgement;
	}

	return true;
}

function value(section, name, title, description, validate, placeholder) {
	const option = section.option(form.Value, name, title, description);

	option.validate = function(section_id, entered) {
		return validate.call(this, entered, section_id);
	};
	option.placeholder = placeholder;

	return option;
}

function choice(section, name, title, description, choices, normal) {
	const option = section.option(form.ListValue, name, title, description);

	for (const [ key, words ] of Object.entries(choices))
		option.value(key, words);

	option.default = normal;

	return option;
}

function list(section, name, title, description, validate, placeholder) {
	const option = section.option(form.DynamicList, name, title, description);

	option.validate = (section_id, entered) => validate(entered);
	option.placeholder = placeholder;

	return option;
}

function agentSection(map) {
	const name = uci.sections('mptcpd', 'agent')[0]?.['.name'];
	const section = map.section(form.NamedSection, name ?? 'agent', 'agent', _('General'));

	section.addremove = !name;

	const enabled = section.option(form.Flag, 'enabled', _('Enabled'),
		_('Otherwise the agent runs and does nothing.'));

	enabled.default = enabled.enabled;

	const lan = list(section, 'lan', _('LAN'), _('Interfaces whose TCP connections are carried.'), values.lan, 'lan');

	interfaces().forEach(name => lan.value(name));

	choice(section, 'on_server_loss', _('While no server answers'), _('What becomes of new connections.'), {
		direct: _('they go out untunnelled'),
		block: _('they are refused')
	}, 'direct');
	choice(section, 'quic', _('QUIC (UDP port 443)'), _('Refused, browsers use TCP, which is bonded.'), {
		allow: _('allowed'),
		reject: _('refused')
	}, 'allow');
	list(section, 'udp_ports', _('Carried UDP ports'),
		_('Destination ports and ranges of UDP that is carried, too, such as 5060 for calls.'), values.portRange, '5060');

	const duplicate = section.option(form.Flag, 'udp_duplicate', _('Duplicated UDP'),
		_('Each carried packet is sent over the two best uplinks: none is lost when one of them fails.'));

	duplicate.default = duplicate.disabled;

	value(section, 'http_listen', _('Status over HTTP'),
		_('Address and port; nowhere if empty.'), values.listen, '127.0.0.1:8484');
	value(section, 'check_url', _('Reachability check'),
		_('Asked for over an uplink on which the server does not answer, to tell a lost server from a dead uplink; "off" asks for nothing.'),
		values.checkUrl, 'http://connectivitycheck.gstatic.com/generate_204');
	choice(section, 'log_level', _('Log level'), _('The least severe lines that are logged.'), {
		error: _('error'),
		warn: _('warning'),
		info: _('info'),
		debug: _('debug')
	}, 'info');
}

function serverSections(map) {
	const section = map.section(form.GridSection, 'server', _('Servers'),
		_('The first that answers is used. Pairing, above, is the easy way to add one.'));

	section.addremove = true;
	section.sortable = true;
	section.nodescriptions = true;

	const address = value(section, 'address', _('Address'), _('Host name or IP address.'), function(entered, name) {
		const claim = (host, port) => '%s %s'.format(host?.toLowerCase(), port || '443');
		const mine = claim(entered, this.section.formvalue(name, 'port'));

		return first(() => values.host(entered),
			() => unique(name, 'server', other => claim(other.address, other.port) == mine));
	}, 'vps.example.net');

	address.rmempty = false;
	value(section, 'port', _('Port'), _('TCP and UDP.'), values.port, '443');

	const key = value(section, 'public_key', _('Public key'), _('The server prints it when it is set up.'), values.publicKey);

	key.rmempty = false;
	key.modalonly = true;
	choice(section, 'cipher', _('Cipher'),
		_('"auto" takes what this router does faster. "none" leaves the contents as they are, which suits traffic that is encrypted anyway.'),
		{ 'auto': 'auto', 'aes-128-gcm': 'aes-128-gcm', 'chacha20-poly1305': 'chacha20-poly1305', 'none': 'none' }, 'auto');
}

/* Whether an interface or a device may be this uplink's. */
function unclaimed(section_id, name, entered) {
	const lan = uci.sections('mptcpd', 'agent').flatMap(section => L.toArray(section.lan));

	if (lan.includes(entered))
		return _('That is the LAN.');

	return unique(section_id, 'uplink', other => other[name]?.toLowerCase() == entered.toLowerCase());
}

function uplinkSections(map) {
	const section = map.section(form.GridSection, 'uplink', _('Uplinks'),
		_('Connections to the Internet, %d at most.').format(MAX_UPLINKS));

	section.addremove = true;
	section.sortable = true;
	section.nodescriptions = true;
	section.modaltitle = name => _('Uplink %s').format(name);
	section.renderSectionAdd = function(...args) {
		return (this.cfgsections().length < MAX_UPLINKS) ? this.super('renderSectionAdd', args) : E([]);
	};

	const shown = section.option(form.DummyValue, '_attachment', _('Interface or device'));

	shown.modalonly = false;
	shown.textvalue = name => E('span', {}, [
		uci.get('mptcpd', name, 'interface') ?? uci.get('mptcpd', name, 'device') ?? '–'
	]);

	const by = choice(section, '_by', _('Found by'), null, {
		interface: _('interface of this router'),
		device: _('network device')
	});

	by.modalonly = true;
	by.load = name => uci.get('mptcpd', name, 'device') ? 'device' : 'interface';
	by.write = by.remove = () => {};

	const netif = value(section, 'interface', _('Interface'), null,
		(entered, name) => first(() => values.interface(entered), () => unclaimed(name, 'interface', entered)));

	interfaces().forEach(name => netif.value(name));
	netif.depends('_by', 'interface');

	const device = value(section, 'device', _('Device'), null,
		(entered, name) => first(() => values.device(entered), () => unclaimed(name, 'device', entered)), 'eth1');

	device.depends('_by', 'device');

	for (const option of [ netif, device ]) {
		option.rmempty = false;
		option.modalonly = true;
	}

	const role = choice(section, 'role', _('Role'), null,
		Object.fromEntries(Object.entries(text.roles).map(([ name, title ]) => [ name, title() ])), 'bond');

	role.editable = true;
	value(section, 'quota', _('Monthly quota'),
		_('What it may receive and send, with K, M, G or T for powers of 1000; 0 is no limit.'), values.amount, '0');

	const day = value(section, 'quota_reset_day', _('Counted anew on day'),
		_('Of the month (UTC); in shorter months on the last.'), values.day, '1');
	const action = choice(section, 'quota_action', _('With the quota used up'), null, {
		backup: _('it becomes a backup'),
		off: _('it is switched off')
	}, 'backup');

	for (const option of [ day, action ])
		option.modalonly = true;
}

/* What is wrong with the lists of a bypass as a whole; true if nothing is. */
function judgeBypass(lists) {
	if (Object.values(lists).every(items => !items.length))
		return _('A bypass needs one entry at least: without any it would match everything.');

	const families = items => new Set(items.map(values.ipv6OfNetwork));
	const [ dest, src ] = [ families(lists.dest), families(lists.src) ];

	if (dest.size && src.size && ![ ...dest ].some(family => src.has(family)))
		return _('It can match nothing: destinations and sources are of different address families.');

	return true;
}

function bypassSections(map) {
	const section = map.section(form.GridSection, 'bypass', _('Bypass'),
		_('Connections that are not tunnelled: those that match every list which has entries.'));

	section.addremove = true;
	section.nodescriptions = true;
	section.modaltitle = name => _('Bypass %s').format(name);

	const dest = list(section, 'dest', _('Destinations'), null, values.network, '10.0.0.0/8');

	list(section, 'src', _('Sources'), null, values.network, '192.168.1.10');
	list(section, 'dport', _('Ports'), _('Destination ports and ranges.'), values.portRange, '8000-8100');
	list(section, 'mac', _('MAC addresses'), _('Of clients.'), values.mac, '02:00:5e:10:00:01');
	dest.parse = function(name) {
		const items = option => L.toArray(this.section.formvalue(name, option));
		const judgement = judgeBypass({ dest: items('dest'), src: items('src'), dport: items('dport'), mac: items('mac') });

		this.map.root.querySelector('.alert-message')?.remove();

		if (judgement === true)
			return this.super('parse', [ name ]);

		/* LuCI's dialogue stays open without a word. */
		this.map.root.prepend(E('div', { 'class': 'alert-message danger' }, [ judgement ]));

		return Promise.reject(new TypeError(judgement));
	};
}

/* The protocols of a forward: words, or a list. */
function protocols(value) {
	const named = L.toArray(value);

	return named.length ? [ 'tcp', 'udp' ].filter(name => named.includes(name)) : [ 'tcp' ];
}

function forwardSections(map) {
	const section = map.section(form.GridSection, 'forward', _('Forwards'),
		_('Ports of the server that lead to hosts on the LAN.'));

	section.addremove = true;
	section.nodescriptions = true;

	const listen = value(section, 'listen', _('Port of the server'), null, function(entered, name) {
		const mine = protocols(this.section.formvalue(name, 'proto'));
		const claims = other => other.listen == entered && protocols(other.proto).some(it => mine.includes(it));

		return first(() => values.port(entered), () => unique(name, 'forward', claims));
	}, '2222');
	const target = value(section, 'target', _('Target on the LAN'), null, values.lanTarget, '192.168.1.10:22');

	for (const option of [ listen, target ])
		option.rmempty = false;

	const proto = choice(section, 'proto', _('Protocol'), null, { 'tcp': 'TCP', 'udp': 'UDP', 'tcp udp': 'TCP + UDP' }, 'tcp');

	proto.load = name => protocols(uci.get('mptcpd', name, 'proto')).join(' ');

	const proxy = section.option(form.Flag, 'proxy_protocol', _('PROXY protocol'),
		_('Tells the target who connects; it has to expect that.'));

	proxy.depends('proto', 'tcp');
}

return view.extend({
	load() {
		return Promise.all([
			uci.load('mptcpd'),
			L.resolveDefault(uci.load('network')),
			style.load()
		]);
	},

	async pair(field) {
		const judgement = values.pairingUri(field.getValue());

		if (judgement !== true)
			return this.say('danger', E('p', {}, [ judgement ]));

		try {
			const answer = await agent.pair(field.getValue());

			field.setValue('');
			uci.unload('mptcpd');
			await this.map.load();
			await this.map.reset();
			this.say('success', E('pre', {}, [ answer.report ]));
			await this.judge();
		}
		catch (failure) {
			this.say('danger', E('p', {}, [ failure.message ]));
		}
	},

	say(kind, words) {
		dom.content(this.told, [ E('div', { 'class': 'alert-message %s'.format(kind) }, [ words ]) ]);
	},

	/* Shows what keeps settings from taking effect. */
	judge() {
		return agent.status().then(notices.ofConfiguration, notices.ofFailure).then(found => {
			dom.content(this.notices, found);
		});
	},

	renderPairing() {
		const field = new ui.Textfield('', {
			placeholder: 'mptcp-bond://vps.example.net:443/?key=…&token=…&v=1',
			optional: true,
			validate: values.pairingUri
		});

		this.told = E('div', { 'aria-live': 'polite' });

		return E('div', { 'class': 'cbi-section' }, [
			E('h3', {}, [ _('Pair with a server') ]),
			E('p', {}, [
				_('Run "mptcp-bond server invite NAME" on the server and paste the URI that it prints. It works once, and for 24 hours.'), ' ',
				_('The server becomes "%s" in the list below; one of that name is replaced.').format(PAIRED)
			]),
			E('div', { 'class': 'mptcp-bond-pairing' }, [
				field.render(),
				E('button', {
					'class': 'btn cbi-button cbi-button-action',
					'disabled': !L.hasViewPermission() || null,
					'click': ui.createHandlerFn(this, 'pair', field)
				}, [ _('Pair') ])
			]),
			this.told
		]);
	},

	async render() {
		const map = this.map = new form.Map('mptcpd');

		uplinkSections(map);
		serverSections(map);
		bypassSections(map);
		forwardSections(map);
		agentSection(map);
		map.tabbed = true;
		this.notices = E('div', { 'aria-live': 'polite' });

		const [ rendered ] = await Promise.all([ map.render(), this.judge() ]);

		return E('div', { 'class': 'mptcp-bond' }, [
			E('h2', {}, [ _('MPTCP bonding') ]),
			this.notices,
			this.renderPairing(),
			rendered
		]);
	}
});
