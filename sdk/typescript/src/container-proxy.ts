/**
 * Does nothing. It stands here so that code which re-exports it (`export { ContainerProxy } from 'sandpail'`) keeps
 * compiling: the credential proxy is a part of the daemon and needs no class of yours.
 *
 * @deprecated Nothing needs it.
 */
export class ContainerProxy {}
