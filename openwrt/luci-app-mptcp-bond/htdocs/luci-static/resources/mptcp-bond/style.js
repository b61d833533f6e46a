'use strict';
'require baseclass';

/* The style sheet of these pages. */

return baseclass.extend({
	/* Resolves once it is there, so that nothing is shown before and moves then; or cannot be had. */
	load() {
		return new Promise(resolve => {
			document.head.append(E('link', {
				'rel': 'stylesheet',
				'href': L.resource('mptcp-bond/style.css'),
				'load': resolve,
				'error': resolve
			}));
		});
	}
});
