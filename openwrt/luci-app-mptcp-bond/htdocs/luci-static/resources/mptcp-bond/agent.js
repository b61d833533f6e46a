'use strict';
'require baseclass';
'require rpc';

/* The agent as it is on ubus. Calls that fail are rejected with a Failure. */

/* What a failed call means where the agent itself has said nothing: by ubus status. */
const statusTexts = {
	2: () => _('The agent does not understand the call; both packages must be of one version.'),
	3: () => _('The agent does not know the call; update the package mptcp-bond and restart it.'),
	6: () => _('The system does not permit it.'),
	7: () => _('The agent did not answer in time; try again, or restart it if that persists.')
};

/* Why a call failed, for people: `kind` is 'absent', 'denied' or 'other'. */
class Failure extends Error {
	constructor(kind, message) {
		super(message);
		this.kind = kind;
	}

	/* No agent on this router's bus. */
	static absent() {
		return new Failure('absent', _('The agent does not run.'));
	}

	static denied() {
		return new Failure('denied',
			_('This login may not do that; it needs the access group "mptcp-bond".'));
	}

	/* Of a ubus status, with what the agent says of it. */
	static ofStatus(status, words) {
		if (words)
			return new Failure('other', words);

		switch (status) {
		case 4: return Failure.absent();
		case 6: return Failure.denied();
		default:
			return new Failure('other',
				statusTexts[status]?.() ?? _('The call failed with ubus status %d.').format(status));
		}
	}

	/* Of an error of LuCI's own: no connection, a session that has ended, or a code of JSON-RPC. */
	static ofError(error) {
		if (error instanceof Failure)
			return error;

		switch (/failed with error (-?\d+)/.exec(error?.message)?.[1]) {
		case '-32000': return Failure.absent();
		case '-32002': return Failure.denied();
		default:
			return new Failure('other', _('The router does not answer: %s').format(error?.message ?? error));
		}
	}
}

/* LuCI gives the answer of a failed call as if it were one, or its status alone where there is none. */
function declare(method, ...params) {
	const call = rpc.declare({ object: 'mptcp-bond', method, params });

	return (...args) => call(...args).catch(error => { throw Failure.ofError(error); }).then(answer => {
		if (typeof(answer) == 'number' && answer != 0)
			throw Failure.ofStatus(answer);

		if (typeof(answer?.error) == 'string')
			throw Failure.ofStatus(null, answer.error);

		return answer;
	});
}

return baseclass.extend({
	Failure,

	/* The snapshot that 'mptcp-bond status --json' prints. */
	status: declare('status'),

	/* What each uplink carried: { uplinks: { NAME: { rx_bps: [...], tx_bps: [...] } } }. */
	history: declare('history', 'span'),

	/* { running: true }, or { running: false, report }. */
	check: declare('check'),

	/* Another role until the agent restarts; 'default' is the one configured. */
	setRole: declare('uplink', 'name', 'role'),

	/* Enrols the router with the server that made the URI, and writes the server's section. */
	pair: declare('pair', 'uri')
});
