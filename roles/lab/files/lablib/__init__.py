# Copyright: hearth.homelab contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Parts of hearth_lab.py. Only the standard library: it runs before any virtual environment exists."""
